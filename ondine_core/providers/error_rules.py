"""Rules that classify an error response by what is at fault; the first rule that matches decides.

A rule searches the codes and sentences of the response, in lower case, and may be limited to some statuses. Where no
rule matches, the status decides. The comment on a rule names who sends such a response; the tests have an example of
each, as the providers document it or their users report it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, TypeAlias

Fault: TypeAlias = Literal[
    "row",
    "size",
    "reply",
    "setup",
    "account",
    "permission",
    "unclear",
    "limited",
    "capacity",
    "overloaded",
    "broken",
    "lost",
]
"""What is at fault.

- `row`: the content of this request (moderation, a filter): its row fails.
- `size`: the length of this request: its batch is halved.
- `reply`: what the model wrote: it is asked again with the reason.
- `setup`: the definition (a parameter, a schema): the run stops, unless other calls of it were answered.
- `account`: credit, key, quota or model: the run stops at any time.
- `permission`: a refusal without a reason (403): the set-up's until something was answered, then the row's.
- `unclear`: another refusal: its row fails; the run stops when it repeats.
- `limited`, `capacity`, `overloaded`, `broken`: the provider at this moment: the call is made again. `capacity` is that
  of a price tier; another tier may have some.
- `lost`: the provider after it passed the request on: the call is made again, although this one may be billed.
"""


@dataclass(frozen=True, slots=True)
class Rule:
    """One line of the table.

    Args:
        fault: What is at fault.
        statuses: The statuses of such responses; empty for any status.
        pattern: A regular expression that matches in their codes and sentences.
        advice: What the user can do about it, or the status whose usual advice applies.
        even_if_it_names_a_wait: Whether the rule also applies to a response that says how long to wait.
    """

    fault: Fault
    statuses: tuple[int, ...]
    pattern: str
    advice: str | int | None = None
    even_if_it_names_a_wait: bool = True


@lru_cache(maxsize=256)  # a limit refuses many calls in the same words
def find_rule(status: int, text: str, *, names_a_wait: bool) -> Rule | None:
    """The first rule that matches a response; `text` is its codes and sentences, without text of the row."""
    text = text.lower()
    for rule in _RULES:
        fits_status = not rule.statuses or status in rule.statuses
        fits_wait = rule.even_if_it_names_a_wait or not names_a_wait
        if fits_status and fits_wait and re.search(rule.pattern, text):
            return rule
    return None


_QUOTA = "the quota of the day or month is used up; wait for the next, or raise it"
_PARAMETER = "no request with this parameter or value succeeds; change it, or leave it out"
_MEMORY = "the server has not enough memory for the model; give it more, or take a smaller model"

_REFUSALS = (400, 401, 402, 403, 404, 409, 410, 412, 422, 424, 429, 451)
_BAD_REQUEST = (400, 422)

_RULES: tuple[Rule, ...] = (
    # -- the provider at this moment, where the words would mislead ----------------------------------------------------
    # OpenRouter, money reserved for calls in flight.
    Rule("limited", (402, 403, 429), r"in_flight_budget"),
    # Gemini and Vertex AI, a quota of minutes.
    Rule("limited", (429,), r"resource_exhausted(?!.*perday)"),
    # DashScope, tokens a minute.
    Rule("limited", (429,), r"(?<!free )allocated quota exceeded|throttling\.(?:rate|burst)"),
    # Azure OpenAI, at its peak load.
    Rule("limited", (429,), r"peak load"),
    # OpenAI flex, Mistral, Groq flex: no capacity.
    Rule("capacity", (429, 498, 503), r"resource_unavailable|capacity|overloaded"),
    # -- the model's reply ---------------------------------------------------------------------------------------------
    # Groq, Cerebras: the model's JSON or tool call was not valid.
    Rule(
        "reply",
        (),
        r"json_validate_failed|tool_use_failed|output_parse_failed|failed_generation|"
        r"failed to generate (?:valid )?json|"
        # llama.cpp, Ollama, TGI: the model's reply could not be parsed.
        r"error parsing tool call|failed to parse input at pos|output that does not match the expected|"
        r"(?:model|generated) (?:\w+ ){0,4}(?:output|text|reply|response|json)\b.{0,40}(?:could not|cannot|"
        r"failed to) be parsed|failed to parse (?:the )?(?:generated|model)|"
        r"model (?:output|response|reply) (?:is|was) (?:not |in)valid",
    ),
    # Bedrock: the model wrote an invalid tool call.
    Rule("reply", (400, 424, 500), r"invalid sequence as part of tooluse"),
    # -- the row's content ---------------------------------------------------------------------------------------------
    # OpenAI, Azure, Moonshot, OpenRouter: codes of content filters.
    Rule(
        "row",
        (*_REFUSALS, 446, 500),
        r"content_filter|content_policy|content_moderation|moderation_blocked|responsibleaipolicyviolation|"
        r"invalid_prompt|safety_check|prohibited_content|datainspectionfailed|data_inspection_failed|"
        r"censorship_blocked|sensitivecontentdetected|guardrail",
    ),
    # Anthropic, DeepSeek, xAI, OpenRouter, Cloudflare AI Gateway: sentences of content filters.
    Rule(
        "row",
        (*_REFUSALS, 446),
        r"flagged|content exists risk|high risk|content filter|content (?:management|usage|safety) polic|"
        r"violat\w+ (?:\w+ ){0,4}(?:polic|guideline|terms|content)|usage polic|prompt blocked|response blocked|"
        r"(?:content|prompt|input|message|output) (?:\w+ ){0,4}(?:blocked|moderat|inappropriate|harmful|sensitive)|"
        r"(?:blocked|rejected|refused) (?:\w+ ){0,5}(?:safety|moderation|content|inappropriate|sensitive)|"
        r"敏感|不合规|违规",
    ),
    # Anthropic, OpenAI: a message without text.
    Rule(
        "row",
        _BAD_REQUEST,
        r"^(?!.*schema).*(?:must|should) (?:be|have|contain) non-?(?:empty|whitespace)|"
        r"content (?:cannot|must not|can't) be empty|non-whitespace text",
    ),
    # -- the set-up, where the words of sizes would mislead ------------------------------------------------------------
    # OpenAI, Azure: the bound of reasoning models.
    Rule(
        "setup",
        _BAD_REQUEST,
        r"max_tokens.{0,80}(?:not supported|unsupported).*max_completion_tokens|use 'max_completion_tokens'",
        advice="this model knows the bound on output tokens only as max_completion_tokens; set "
        "settings={'token_limit_field': 'max_completion_tokens'}",
    ),
    # Mistral and older servers: the name that OpenAI's reasoning models use for the bound.
    Rule(
        "setup",
        _BAD_REQUEST,
        r"(?:extra_forbidden|extra inputs|unrecognized|unknown|unsupported|unexpected).{0,120}max_completion_tokens|"
        r"max_completion_tokens.{0,60}(?:extra inputs|not permitted|not supported|unsupported|unknown)",
        advice="this server knows the bound on output tokens only as max_tokens; set "
        "settings={'token_limit_field': 'max_tokens'}",
    ),
    # OpenAI, Anthropic, Groq, DeepSeek, vLLM: a bound that no reply may have.
    Rule(
        "setup",
        _BAD_REQUEST,
        r"max(?:_completion|_output)?_tokens\W{0,3}(?:\w+ ){0,3}is too large.{0,80}supports at most|"
        r"is too large.{0,160}\(\d+ > \d+ - \d{1,3}\)|invalid max_tokens value|max_tokens: \d+ > \d+|"
        r"maximum allowed number of output tokens|"
        r"max(?:_completion|_output)?_tokens\W{0,3} ?must be (?:less|at most|between|in|<=)",
        advice="the model cannot write that many tokens; lower max_output_tokens",
    ),
    # -- the size ------------------------------------------------------------------------------------------------------
    # OpenAI, Groq: one call larger than the limit of a minute.
    Rule("size", (400, 413, 429), r"request too large|limit [\d,]+, requested [\d,]+"),
    # AWS API Gateway, nginx, Anthropic: too many bytes.
    Rule("size", (413,), r""),
    # OpenAI, Anthropic, Gemini, Mistral, DeepSeek, xAI, Bedrock, vLLM, llama.cpp, Ollama, TGI: the context window.
    Rule(
        "size",
        (400, 413, 422, 500),
        r"context_length_exceeded|exceed_context_size|string_above_max_length|request_too_large|token_limit_exceeded|"
        r"context[ -](?:length|size|window)|"
        r"max(?:imum|_model|_seq)?[ _](?:\w+ )?(?:context|prompt|input|sequence|model)[ _]len|"
        r"(?:prompt|input|request|message|text)s? (?:is |are )?(?:\w+ )?too (?:long|large)|too many (?:\w+ )?tokens|"
        r"exceeds? the (?:max|limit|model|context|token).{0,60}tokens?|"
        r"tokens?`? .{0,60}(?:exceed|must be <=|too (?:large|long|many))|reduce the (?:length|size)|"
        r"range of input length|maximum allowed token|(?:less|fewer|more) than [\d,]+ tokens|超长",
    ),
    # OpenAI, Together, any: a limit of a minute, whatever else is advertised.
    Rule("limited", (429,), r"^(?!.*(?:per[ _-]?day|daily)).*(?:(?:per|/)[ _-]?(?:min|sec)|\b(?:rpm|tpm|qps)\b)"),
    # -- the account ---------------------------------------------------------------------------------------------------
    # OpenAI, Perplexity, LiteLLM, Moonshot, DashScope, Anthropic, OpenRouter: codes of credit.
    Rule(
        "account",
        (),
        r"insufficient_(?:user_)?(?:quota|balance|credit|fund)|billing_(?:hard_limit|not_active|error|disabled)|"
        r"budget_exceeded|exceeded_current_quota|exceededbudget|exceededtokenbudget|arrearage|payment_required|"
        r"personal-team-blocked|freetieronly|weight_exceeds_budget|openrouter_(?:credits|key_limit)|"
        r"spend_limit_reached|organization_on_hold",
        advice=402,
    ),
    # Anthropic: the limit that the owner set.
    Rule("account", _REFUSALS, r"api usage limits", advice=_QUOTA),
    # Gemini, OpenRouter: the quota of a day.
    Rule("account", (429,), r"perday|free-models-per-day", advice=_QUOTA),
    # Anthropic, xAI, DeepSeek, SiliconFlow, Zhipu, LiteLLM, Fireworks, Hugging Face: sentences about money.
    Rule(
        "account",
        _REFUSALS,
        r"credit balance|enough (?:balance|quota|funds)|(?:quota|balance) is not enough|"
        r"exhausted your (?:\w+ )?credits?|key limit exceeded|requires a (?:\w+ )?subscription|"
        r"insufficient (?:\w+ )?(?:balance|credits?|funds|quota)|"
        r"balance (?:\w+ ){0,3}(?:insufficient|too low|not enough|exhausted)|"
        r"(?:out of|no|not enough|more|purchase|add|buy|used all \w+) (?:\w+ ){0,2}credits?\b|can only afford|"
        r"credits? (?:\w+ ){0,3}(?:exhausted|depleted|used up|expired|ran out)|"
        r"(?:budget|spend\w*|allowance) (?:\w+ ){0,4}(?:exceeded|reached|exhausted)|over budget|spend\w*[ -]limit|"
        r"exceeded (?:\w+ ){0,3}(?:budget|quota|allowance|spend\w*|included credits)|crossed budget|"
        r"plan (?:and|&) billing|(?:enable|check|update|activate) (?:\w+ ){0,3}billing|"
        r"billing (?:\w+ ){0,4}(?:disabled|inactive|not|required|issue)|"
        r"payment (?:\w+ ){0,2}(?:required|method|due|failed|overdue)|past due|overdue|in arrears|good standing|"
        r"top[ -]up|recharge|subscription (?:\w+ ){0,3}(?:expired|disabled|ended|inactive|required)|欠费|余额|额度",
        advice=402,
        even_if_it_names_a_wait=False,
    ),
    # OpenRouter, Groq, Cohere, Cloudflare: the quota of a day or month.
    Rule(
        "account",
        (403, 429),
        r"(?:per|a|/)[ _-]?(?:day|month)|daily|monthly|\b(?:rpd|tpd)\b|trial key|"
        r"free[- ]tier (?:\w+ ){0,3}(?:exhausted|used)|free allocated quota",
        advice=_QUOTA,
        even_if_it_names_a_wait=False,
    ),
    # AWS API Gateway: the quota of a usage plan.
    Rule("account", (429,), r"^limit exceeded\.?$", advice=_QUOTA, even_if_it_names_a_wait=False),
    # Gemini, xAI, OpenAI, Anthropic, LiteLLM: a key or an account that is refused.
    Rule(
        "account",
        _REFUSALS,
        r"api_key_invalid|"
        r"(?:invalid|incorrect|wrong|expired|revoked|disabled|unknown|malformed)[ _](?:x-)?api[ _-]?key|"
        r"api[ _-]?key (?:\w+ ){0,2}(?:not valid|invalid|expired|revoked|disabled|not found|incorrect|deleted)|"
        r"no api key found|no_db_connection|authentication_error|invalid[ _]authentication|"
        r"(?:account|organi[sz]ation|project|workspace|key|user) (?:\w+ ){0,4}(?:deactivated|suspended|disabled|"
        r"terminated|banned|revoked|closed)|account_deactivated|consumer_suspended|service_disabled|access_terminated|"
        r"token (?:\w+ )?(?:expired|revoked)|security token .{0,60}(?:invalid|expired)|"
        r"signature (?:\w+ )?(?:expired|does not match)",
        advice=401,
    ),
    # OpenAI, Anthropic, Gemini: a country that is not served.
    Rule(
        "account",
        _REFUSALS,
        r"unsupported_country|(?:country|region|location)\b.{0,40}not (?:supported|available)",
        advice="the provider does not serve this place; use another region or provider",
    ),
    # -- the model and the address -------------------------------------------------------------------------------------
    # OpenAI, Azure, Groq, Mistral, DeepSeek, OpenRouter, LiteLLM, Together, Ollama, vLLM, Bedrock: no such model.
    Rule(
        "account",
        (400, 401, 403, 404, 410, 422),
        r"model_?not_?found|deployment_?not_?found|invalid_model|model_decommissioned|model_(?:access_)?denied|"
        r"model_access|(?:unknown|no such|invalid) (?:model|deployment)|not a valid model|model not exist|"
        r"try pulling it|no endpoints found|unable to access (?:[\w-]+ )?model|"
        r"(?:model|deployment)\b.{0,100}?(?:does not exist|do not have access|doesn't exist|not found|is not a valid|"
        r"\bhas been (?:deprecated|decommissioned|removed|retired|shut down|sunset))|"
        r"model\W+[\w./:-]+\W+is not (?:available|supported)|not allowed to access (?:\w+ )?model|"
        r"access to (?:the |this )?model|with on-demand throughput",
        advice=404,
    ),
    # OpenAI: no such address.
    Rule("account", (404,), r"invalid url|unknown (?:request )?url", advice=405),
    # nginx, Go: an address with http instead of https.
    Rule("account", (400,), r"http request (?:was sent )?to (?:an )?https (?:port|server)", advice=405),
    # AWS API Gateway: no such address.
    Rule("account", (403,), r"missing authentication token", advice=405),
    # -- the set-up ----------------------------------------------------------------------------------------------------
    # vLLM, Gemini, Ollama: no system message.
    Rule(
        "setup",
        (400, 422, 500),
        r"(?:system|developer) (?:role|instruction|message|prompt)s? (?:is |are )?not (?:supported|enabled|allowed)|"
        r"(?:does not support|unsupported) (?:\w+ )?(?:system|developer)|roles must alternate",
        advice="this model takes no system message; leave out system and say it in the prompt",
    ),
    # mlx_lm.server, llama.cpp: a parameter of another type, or out of its range.
    Rule(
        "setup",
        _BAD_REQUEST,
        r"\b(?:temperature|top_[pk]|min_p|seed|logprobs|top_logprobs|logit_bias|(?:presence|frequency|repetition)_\w+|"
        r"xtc_\w+|num_draft_tokens|max_tokens) must be (?:of type|at (?:least|most))|"
        r"\bfield '[\w.]+': .{0,30}type_error",
        advice=_PARAMETER,
    ),
    # OpenAI, Anthropic: temperature of reasoning models.
    Rule(
        "setup",
        _BAD_REQUEST,
        r"temperature.{0,80}(?:not support|unsupported|only the default|deprecated|may only be|must be)|"
        r"(?:unsupported|does not support).{0,60}temperature",
        advice="this model takes no other temperature than its own; leave temperature out",
    ),
    # OpenAI, Azure, Gemini, Cerebras, vLLM, llama.cpp: a schema that is not taken.
    Rule(
        "setup",
        (400, 404, 422, 500, 501),
        r"invalid schema|invalid_json_schema|response_format|response_schema|responseschema|json[ _]schema|"
        r"output_config|failed to (?:parse|initialize|compile) (?:grammar|samplers)|"
        r"(?:grammar|guided|structured)\b.{0,60}(?:error|invalid|unsupported|not supported)|wrong_api_format|"
        r"must contain the word 'json'",
        advice="the provider cannot hold the model to this output; change the output's types, or how it is asked for",
    ),
    # OpenAI, Gemini, Groq, Mistral, Anthropic, vLLM, FastAPI: a parameter or value that is not taken.
    Rule(
        "setup",
        (400, 422, 501),
        r"must be greater than `thinking|unsupported_(?:parameter|value)|unknown_parameter|extra_forbidden|"
        r"unsupportedparams|"
        r"(?:unsupported|unrecognized|unknown|unexpected|invalid) (?:\w+ )?(?:parameter|argument|field|keyword|option|"
        r"value|key)|extra inputs are not permitted|cannot find field|unknown variant|"
        r"property '[\w.]+' is (?:not supported|unsupported)|"
        r"(?:parameter|argument|field|option|value|setting)s? .{0,80}(?:not (?:supported|permitted|allowed|"
        r"recognized)|unsupported)|does not support|is not supported|not supported (?:with|by|for)|literal_error|"
        r"(?:less|greater)_than(?:_equal)?\b|above_max_value|below_min_value|"
        r"(?:above|below) (?:the )?(?:maximum|minimum)|cannot both be|out of range|range: ?\d|must be between|"
        r"not implemented|parameter .{0,40}must be|range of (?!input)\w+ should be",
        advice=_PARAMETER,
    ),
    # Ollama: the model does not fit.
    Rule("setup", (500,), r"requires more (?:system )?memory", advice=_MEMORY),
    # -- the provider at this moment -----------------------------------------------------------------------------------
    # LiteLLM, Envoy, AWS API Gateway, Cloudflare: the provider behind it did not answer in time.
    Rule(
        "lost",
        (408, 500, 503, 504, 524),
        r"litellm\.timeout|apitimeouterror|upstream request timeout|endpoint request timed out|timeout occurred",
    ),
    # llama.cpp, Hugging Face, Ollama, Envoy: not ready yet.
    Rule(
        "overloaded",
        (424, 500, 502, 503),
        r"loading|warming up|starting up|overloaded|server (?:is )?busy|queue (?:is )?full|no healthy upstream|"
        r"overflow|high demand",
    ),
)
