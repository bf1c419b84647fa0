"""Whose fault a refusal is, as a table: the first rule that fits what a response says decides.

A rule looks for words in the codes and sentences of the response, in small letters, and may ask for certain statuses.
What no rule knows is decided by the status alone. Each rule names who sends such a response; the tests hold an example
of each, as these providers document it or their users report it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, TypeAlias

__all__ = ["Fault", "Rule", "find_rule"]

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
- `limited`, `capacity`, `overloaded`, `broken`: the moment: the call is made again. `capacity` is that of the price
  tier, which another may have.
- `lost`: the moment, after the request was passed on: the call is made again, and this one may be billed all the same.
"""


@dataclass(frozen=True, slots=True)
class Rule:
    """One line of the table.

    Args:
        sent_by: Who sends such a response.
        fault: What is at fault.
        says: A regular expression that its codes and sentences contain.
        statuses: The statuses it comes with; `None` for any.
        advice: What the user can do about it, or the status whose usual advice it is.
        even_if_it_names_a_wait: Whether the rule holds for a response that says when to come back.
    """

    sent_by: str
    fault: Fault
    says: re.Pattern[str]
    statuses: frozenset[int] | None = None
    advice: str | int | None = None
    even_if_it_names_a_wait: bool = True


@lru_cache(maxsize=256)  # a limit refuses many calls in the same words
def find_rule(status: int, said: str, *, names_a_wait: bool) -> Rule | None:
    """The first rule that fits.

    Args:
        status: Of the response.
        said: Its codes and sentences, without text of the row.
        names_a_wait: Whether the response says when to come back.
    """
    said = said.lower()
    for rule in _RULES:
        fits_status = rule.statuses is None or status in rule.statuses
        fits_wait = rule.even_if_it_names_a_wait or not names_a_wait
        if fits_status and fits_wait and rule.says.search(said):
            return rule
    return None


_QUOTA = "the quota of the day or month is used up; wait for the next, or raise it"
_PARAMETER = "no request with this parameter or value succeeds; change it, or leave it out"
_SCHEMA = "the provider cannot hold the model to this output; change the output's types, or how it is asked for"
_OUTPUT_BOUND = "the model cannot write so much; lower max_output_tokens"
_RENAMED_BOUND = (
    "this model knows the bound on output tokens only as max_completion_tokens; set "
    "settings={'token_limit_field': 'max_completion_tokens'}"
)
_OLD_BOUND = (
    "this server knows the bound on output tokens only as max_tokens; set settings={'token_limit_field': 'max_tokens'}"
)
_TEMPERATURE = "this model takes no other temperature than its own; leave temperature out"
_SYSTEM = "this model takes no system message; leave out system and say it in the prompt"
_MEMORY = "the server has not enough memory for the model; give it more, or take a smaller model"

_REFUSALS = frozenset({400, 401, 402, 403, 404, 409, 410, 412, 422, 424, 429, 451})
_BAD_REQUEST = frozenset({400, 422})


def _rule(
    sent_by: str, fault: Fault, says: str, *statuses: int, advice: str | int | None = None, wait: bool = True
) -> Rule:
    return Rule(sent_by, fault, re.compile(says), frozenset(statuses) or None, advice, wait)


_RULES: tuple[Rule, ...] = (
    # -- the moment, where the words would mislead ---------------------------------------------------------------------
    _rule("OpenRouter, money reserved for calls in flight", "limited", r"in_flight_budget", 402, 403, 429),
    _rule("Gemini and Vertex AI, a quota of minutes", "limited", r"resource_exhausted(?!.*perday)", 429),
    _rule(
        "DashScope, tokens a minute", "limited", r"(?<!free )allocated quota exceeded|throttling\.(?:rate|burst)", 429
    ),
    _rule("Azure OpenAI, at its peak load", "limited", r"peak load", 429),
    _rule(
        "OpenAI flex, Mistral, Groq flex: no capacity",
        "capacity",
        r"resource_unavailable|capacity|overloaded",
        429,
        498,
        503,
    ),
    # -- the model's reply ---------------------------------------------------------------------------------------------
    _rule(
        "Groq, Cerebras: the model's JSON or tool call was not valid",
        "reply",
        r"json_validate_failed|tool_use_failed|output_parse_failed|failed_generation|"
        r"failed to generate (?:valid )?json",
    ),
    _rule(
        "llama.cpp, Ollama, TGI: the model's reply could not be parsed",
        "reply",
        r"error parsing tool call|failed to parse input at pos|output that does not match the expected|"
        r"(?:model|generated) (?:\w+ ){0,4}(?:output|text|reply|response|json)\b.{0,40}(?:could not|cannot|"
        r"failed to) be parsed|"
        r"failed to parse (?:the )?(?:generated|model)|model (?:output|response|reply) (?:is|was) (?:not |in)valid",
    ),
    _rule(
        "Bedrock: the model wrote an invalid tool call", "reply", r"invalid sequence as part of tooluse", 400, 424, 500
    ),
    # -- the row's content ---------------------------------------------------------------------------------------------
    _rule(
        "OpenAI, Azure, Moonshot, OpenRouter: codes of content filters",
        "row",
        r"content_filter|content_policy|content_moderation|moderation_blocked|responsibleaipolicyviolation|"
        r"invalid_prompt|safety_check|prohibited_content|datainspectionfailed|data_inspection_failed|"
        r"censorship_blocked|sensitivecontentdetected|guardrail",
        *_REFUSALS,
        446,
        500,
    ),
    _rule(
        "Anthropic, DeepSeek, xAI, OpenRouter, Cloudflare AI Gateway: sentences of content filters",
        "row",
        r"flagged|content exists risk|high risk|content filter|content (?:management|usage|safety) polic|"
        r"violat\w+ (?:\w+ ){0,4}(?:polic|guideline|terms|content)|usage polic|prompt blocked|response blocked|"
        r"(?:content|prompt|input|message|output) (?:\w+ ){0,4}(?:blocked|moderat|inappropriate|harmful|sensitive)|"
        r"(?:blocked|rejected|refused) (?:\w+ ){0,5}(?:safety|moderation|content|inappropriate|sensitive)|"
        r"敏感|不合规|违规",
        *_REFUSALS,
        446,
    ),
    _rule(
        "Anthropic, OpenAI: a message without text",
        "row",
        r"^(?!.*schema).*(?:must|should) (?:be|have|contain) non-?(?:empty|whitespace)|"
        r"content (?:cannot|must not|can't) be empty|non-whitespace text",
        *_BAD_REQUEST,
    ),
    # -- the set-up, where the words of sizes would mislead ------------------------------------------------------------
    _rule(
        "OpenAI, Azure: the bound of reasoning models",
        "setup",
        r"max_tokens.{0,80}(?:not supported|unsupported).*max_completion_tokens|use 'max_completion_tokens'",
        *_BAD_REQUEST,
        advice=_RENAMED_BOUND,
    ),
    _rule(
        "Mistral and older servers: the bound of others",
        "setup",
        r"(?:extra_forbidden|extra inputs|unrecognized|unknown|unsupported|unexpected).{0,120}max_completion_tokens|"
        r"max_completion_tokens.{0,60}(?:extra inputs|not permitted|not supported|unsupported|unknown)",
        *_BAD_REQUEST,
        advice=_OLD_BOUND,
    ),
    _rule(
        "OpenAI, Anthropic, Groq, DeepSeek, vLLM: a bound that no reply may have",
        "setup",
        r"max(?:_completion|_output)?_tokens\W{0,3}(?:\w+ ){0,3}is too large.{0,80}supports at most|"
        r"is too large.{0,160}\(\d+ > \d+ - \d{1,3}\)|"
        r"invalid max_tokens value|max_tokens: \d+ > \d+|maximum allowed number of output tokens|"
        r"max(?:_completion|_output)?_tokens\W{0,3} ?must be (?:less|at most|between|in|<=)",
        *_BAD_REQUEST,
        advice=_OUTPUT_BOUND,
    ),
    # -- the size ------------------------------------------------------------------------------------------------------
    _rule(
        "OpenAI, Groq: one call larger than the limit of a minute",
        "size",
        r"request too large|limit [\d,]+, requested [\d,]+",
        400,
        413,
        429,
    ),
    _rule("AWS API Gateway, nginx, Anthropic: too many bytes", "size", r"", 413),
    _rule(
        "OpenAI, Anthropic, Gemini, Mistral, DeepSeek, xAI, Bedrock, vLLM, llama.cpp, Ollama, TGI: the context window",
        "size",
        r"context_length_exceeded|exceed_context_size|string_above_max_length|request_too_large|token_limit_exceeded|"
        r"context[ -](?:length|size|window)|max(?:imum|_model|_seq)?[ _](?:\w+ )?(?:context|prompt|input|"
        r"sequence|model)[ _]len|"
        r"(?:prompt|input|request|message|text)s? (?:is |are )?(?:\w+ )?too (?:long|large)|too many (?:\w+ )?tokens|"
        r"exceeds? the (?:max|limit|model|context|token).{0,60}tokens?|tokens?`? .{0,60}(?:exceed|must be <=|"
        r"too (?:large|long|many))|"
        r"reduce the (?:length|size)|range of input length|maximum allowed token|"
        r"(?:less|fewer|more) than [\d,]+ tokens|超长",
        400,
        413,
        422,
        500,
    ),
    _rule(
        "OpenAI, Together, any: a limit of a minute, whatever else is advertised",
        "limited",
        r"^(?!.*(?:per[ _-]?day|daily)).*(?:(?:per|/)[ _-]?(?:min|sec)|\b(?:rpm|tpm|qps)\b)",
        429,
    ),
    # -- the account ---------------------------------------------------------------------------------------------------
    _rule(
        "OpenAI, Perplexity, LiteLLM, Moonshot, DashScope, Anthropic, OpenRouter: codes of credit",
        "account",
        r"insufficient_(?:user_)?(?:quota|balance|credit|fund)|billing_(?:hard_limit|not_active|error|disabled)|budget_exceeded|"
        r"exceeded_current_quota|exceededbudget|exceededtokenbudget|arrearage|payment_required|personal-team-blocked|"
        r"freetieronly|weight_exceeds_budget|openrouter_(?:credits|key_limit)|spend_limit_reached|organization_on_hold",
        advice=402,
    ),
    _rule("Anthropic: the limit that the owner set", "account", r"api usage limits", *_REFUSALS, advice=_QUOTA),
    _rule("Gemini, OpenRouter: the quota of a day", "account", r"perday|free-models-per-day", 429, advice=_QUOTA),
    _rule(
        "Anthropic, xAI, DeepSeek, SiliconFlow, Zhipu, LiteLLM, Fireworks, Hugging Face: sentences about money",
        "account",
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
        r"top[ -]up|recharge|"
        r"subscription (?:\w+ ){0,3}(?:expired|disabled|ended|inactive|required)|欠费|余额|额度",
        *_REFUSALS,
        advice=402,
        wait=False,
    ),
    _rule(
        "OpenRouter, Groq, Cohere, Cloudflare: the quota of a day or month",
        "account",
        r"(?:per|a|/)[ _-]?(?:day|month)|daily|monthly|\b(?:rpd|tpd)\b|trial key|"
        r"free[- ]tier (?:\w+ ){0,3}(?:exhausted|used)|"
        r"free allocated quota",
        403,
        429,
        advice=_QUOTA,
        wait=False,
    ),
    _rule(
        "AWS API Gateway: the quota of a usage plan", "account", r"^limit exceeded\.?$", 429, advice=_QUOTA, wait=False
    ),
    _rule(
        "Gemini, xAI, OpenAI, Anthropic, LiteLLM: a key or an account that is refused",
        "account",
        r"api_key_invalid|(?:invalid|incorrect|wrong|expired|revoked|disabled|unknown|"
        r"malformed)[ _](?:x-)?api[ _-]?key|"
        r"api[ _-]?key (?:\w+ ){0,2}(?:not valid|invalid|expired|revoked|disabled|not found|incorrect|deleted)|"
        r"no api key found|no_db_connection|authentication_error|invalid[ _]authentication|"
        r"(?:account|organi[sz]ation|project|workspace|key|user) (?:\w+ ){0,4}(?:deactivated|suspended|disabled|"
        r"terminated|banned|revoked|closed)|"
        r"account_deactivated|consumer_suspended|service_disabled|access_terminated|token (?:\w+ )?(?:expired|revoked)|"
        r"security token .{0,60}(?:invalid|expired)|signature (?:\w+ )?(?:expired|does not match)",
        *_REFUSALS,
        advice=401,
    ),
    _rule(
        "OpenAI, Anthropic, Gemini: a country that is not served",
        "account",
        r"unsupported_country|(?:country|region|location)\b.{0,40}not (?:supported|available)",
        *_REFUSALS,
        advice="the provider does not serve this place; use another region or provider",
    ),
    # -- the model and the address -------------------------------------------------------------------------------------
    _rule(
        "OpenAI, Azure, Groq, Mistral, DeepSeek, OpenRouter, LiteLLM, Together, Ollama, vLLM: no such model",
        "account",
        r"model_?not_?found|deployment_?not_?found|invalid_model|model_decommissioned|model_(?:access_)?denied|"
        r"model_access|"
        r"(?:unknown|no such|invalid) (?:model|deployment)|not a valid model|model not exist|try pulling it|"
        r"no endpoints found|"
        r"unable to access (?:[\w-]+ )?model|"
        r"(?:model|deployment)\b.{0,100}?(?:does not exist|do not have access|doesn't exist|not found|is not a valid|"
        r"\bhas been (?:deprecated|decommissioned|removed|retired|shut down|sunset))|"
        r"model\W+[\w./:-]+\W+is not (?:available|supported)|"
        r"not allowed to access (?:\w+ )?model|access to (?:the |this )?model",
        400,
        401,
        403,
        404,
        410,
        422,
        advice=404,
    ),
    _rule("OpenAI: an address that is none", "account", r"invalid url|unknown (?:request )?url", 404, advice=405),
    _rule("AWS API Gateway: an address that is none", "account", r"missing authentication token", 403, advice=405),
    # -- the set-up ----------------------------------------------------------------------------------------------------
    _rule(
        "vLLM, Gemini, Ollama: no system message",
        "setup",
        r"(?:system|developer) (?:role|instruction|message|prompt)s? (?:is |are )?not (?:supported|enabled|allowed)|"
        r"(?:does not support|unsupported) (?:\w+ )?(?:system|developer)|roles must alternate",
        400,
        422,
        500,
        advice=_SYSTEM,
    ),
    _rule(
        "mlx_lm.server, llama.cpp: a parameter of another type, or out of its range",
        "setup",
        r"\b(?:temperature|top_[pk]|min_p|seed|logprobs|top_logprobs|logit_bias|(?:presence|frequency|repetition)_\w+|"
        r"xtc_\w+|num_draft_tokens|max_tokens) must be (?:of type|at (?:least|most))|"
        r"\bfield '[\w.]+': .{0,30}type_error",
        *_BAD_REQUEST,
        advice=_PARAMETER,
    ),
    _rule(
        "OpenAI, Anthropic: temperature of reasoning models",
        "setup",
        r"temperature.{0,80}(?:not support|unsupported|only the default|deprecated|may only be|must be)|"
        r"(?:unsupported|does not support).{0,60}temperature",
        *_BAD_REQUEST,
        advice=_TEMPERATURE,
    ),
    _rule(
        "OpenAI, Azure, Gemini, Cerebras, vLLM, llama.cpp: a schema that is not taken",
        "setup",
        r"invalid schema|invalid_json_schema|response_format|response_schema|responseschema|json[ _]schema|"
        r"output_config|"
        r"failed to (?:parse|initialize|compile) (?:grammar|samplers)|(?:grammar|guided|"
        r"structured)\b.{0,60}(?:error|invalid|unsupported|not supported)|"
        r"wrong_api_format|must contain the word 'json'",
        400,
        404,
        422,
        500,
        501,
        advice=_SCHEMA,
    ),
    _rule(
        "OpenAI, Gemini, Groq, Mistral, Anthropic, vLLM, FastAPI: a parameter or value that is not taken",
        "setup",
        r"must be greater than `thinking|"
        r"unsupported_(?:parameter|value)|unknown_parameter|extra_forbidden|unsupportedparams|"
        r"(?:unsupported|unrecognized|unknown|unexpected|invalid) (?:\w+ )?(?:parameter|argument|field|keyword|"
        r"option|value|key)|"
        r"extra inputs are not permitted|cannot find field|unknown variant|"
        r"property '[\w.]+' is (?:not supported|unsupported)|"
        r"(?:parameter|argument|field|option|value|setting)s? .{0,80}(?:not (?:supported|permitted|allowed|"
        r"recognized)|unsupported)|"
        r"does not support|is not supported|not supported (?:with|by|for)|literal_error|(?:less|"
        r"greater)_than(?:_equal)?\b|"
        r"above_max_value|below_min_value|(?:above|below) (?:the )?(?:maximum|minimum)|cannot both be|out of range|"
        r"range: ?\d|must be between|not implemented|parameter .{0,40}must be|range of (?!input)\w+ should be",
        400,
        422,
        501,
        advice=_PARAMETER,
    ),
    _rule("Ollama: the model does not fit", "setup", r"requires more (?:system )?memory", 500, advice=_MEMORY),
    # -- the moment ----------------------------------------------------------------------------------------------------
    _rule(
        "LiteLLM, Envoy, AWS API Gateway, Cloudflare: the provider behind it did not answer in time",
        "lost",
        r"litellm\.timeout|apitimeouterror|upstream request timeout|endpoint request timed out|timeout occurred",
        408,
        500,
        503,
        504,
        524,
    ),
    _rule(
        "llama.cpp, Hugging Face, Ollama, Envoy: not ready yet",
        "overloaded",
        r"loading|warming up|starting up|overloaded|server (?:is )?busy|queue (?:is )?full|no healthy upstream|"
        r"overflow|high demand",
        424,
        500,
        502,
        503,
    ),
)
