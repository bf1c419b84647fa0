"""The form of requests that a chat-completions server accepts, by its model's name and by its refusals.

A server refuses a request with a part that it does not support, at no cost. That part is then written in another way in
all following calls of the model; no row fails because of it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Final, Literal, TypeAlias

from ondine_core.errors import ConfigError
from ondine_core.providers.settings import setting_of
from ondine_core.providers.strict_schema import ALL, SchemaSubset, strict_schema
from ondine_core.types.values import Call, Message, ModelSpec

Structure: TypeAlias = Literal["json_schema", "json_object", "words"]
"""What holds a model to a schema: the server; the prompt, while the server enforces JSON; the prompt alone."""

LimitField: TypeAlias = Literal["max_tokens", "max_completion_tokens"]
_LIMIT_FIELDS: Final[tuple[LimitField, ...]] = ("max_tokens", "max_completion_tokens")


@dataclass(frozen=True, slots=True)
class RequestForm:
    """How requests are written for a server.

    Args:
        structure: What holds the model to a schema.
        subset: The part of JSON schema that the server's strict mode supports.
        limit_field: The server's name for the limit on output tokens.
        system_role: Whether the server takes system messages.
    """

    structure: Structure = "json_schema"
    subset: SchemaSubset = ALL
    limit_field: LimitField = "max_tokens"
    system_role: bool = True

    def write(self, call: Call) -> tuple[Call, bytes | None, bool]:
        """The call to send, its strict schema (`None` if it has none), and whether to turn JSON mode on."""
        schema, json_mode = None, False
        if call.json_schema is not None:
            json_mode = self.structure == "json_object"
            if self.structure == "json_schema":
                schema = strict_schema(call.json_schema, self.subset)
            if schema is None:
                call = with_schema_in_prompt(call)
        if not self.system_role:
            call = fold_system(call)
        return call, schema, json_mode

    def adapt(self, message: str, call: Call, *, has_limit: bool) -> RequestForm | None:
        """A form without the part that a refusal of `call` names in `message`; `None` if it names none.

        `has_limit` says whether the request had a limit on output tokens.
        """
        written, schema, json_mode = self.write(call)
        if _SYSTEM_REFUSED.search(message) and any(part.role == "system" for part in written.messages):
            return replace(self, system_role=False)
        refused = _LIMIT_REFUSED.search(message) if has_limit else None
        if refused and self.limit_field in refused.groups():
            is_old = self.limit_field == "max_tokens"
            return replace(self, limit_field="max_completion_tokens" if is_old else "max_tokens")
        if (schema or json_mode) and _SCHEMA_REFUSED.search(message):
            return replace(self, structure="words")
        return None


PLAIN_FORM: Final = RequestForm()
"""The form of most servers."""

# From the chat templates of Gemma, Mistral and others on vLLM, llama.cpp, TGI and MLX, and from Gemini about Gemma.
_SYSTEM_REFUSED = re.compile(
    r"system.{0,10}(role|message|prompt|instruction)s?\b.{0,40}\b(not|un)[ -]?\w*(support|allow|accept|permit|enabled)"
    r"|not? (support|allow|accept)\w* .{0,20}system\W{0,3}(role|message|prompt|instruction)"
    r"|(unsupported|unknown|invalid|unexpected|unrecogni[sz]ed) (message )?role\b.{0,12}system"
    r"|only user\b.{0,30}\brole|roles? (must|should) alternate|role .{0,3}system.{0,3} is not"
    r"|developer instruction is not enabled",
    re.IGNORECASE,
)
_FIELD = r"\b(max_completion_tokens|max_tokens)\b"
_LIMIT_REFUSED = re.compile(
    rf"(?:unsupported|unknown|unrecogni[sz]ed|unexpected|extra|invalid)\b.{{0,30}}\b(?:parameter|argument|field|input|key)"
    rf"[^.]{{0,30}}{_FIELD}|{_FIELD}\W{{0,3}} (?:is |was |are )?(?:not supported|unsupported|deprecated and not)"
    rf"|{_FIELD}.{{0,20}}extra (?:inputs|fields)|use \W?(?:max_completion_tokens|max_tokens)\W? instead of {_FIELD}",
    re.IGNORECASE,
)
_SCHEMA_REFUSED = re.compile(
    r"response[_ .]?format|json[_ ]?schema|structured[_ ]outputs?|guided_|grammar"
    # Gemini; the second is its whole message about a union of types or a schema that is too large.
    r"|response[_ ]?schema|request contains an invalid argument",
    re.IGNORECASE,
)


# -- the prompt instead of a request field ------------------------------------------------------------------------

# A reply is checked against the schema either way; only fewer replies are valid at the first attempt. The schema is in
# the fixed beginning of a call, which providers cache.


def with_schema_in_prompt(call: Call) -> Call:
    """`call` with its schema in the system message; unchanged if it has no schema."""
    if call.json_schema is None:
        return call
    instruction = f"Reply only with JSON that follows this JSON schema:\n{call.json_schema.decode()}"
    messages = call.messages
    if messages and messages[0].role == "system":
        messages = (replace(messages[0], content=f"{messages[0].content}\n\n{instruction}"), *messages[1:])
    else:
        messages = (Message("system", instruction), *messages)
    return replace(call, messages=messages, json_schema=None)


def fold_system(call: Call) -> Call:
    """`call` with its system message at the beginning of the first user message."""
    if len(call.messages) < 2 or call.messages[0].role != "system" or call.messages[1].role != "user":  # noqa: PLR2004
        return call
    system, user, *rest = call.messages
    return replace(call, messages=(replace(user, content=f"{system.content}\n\n{user.content}"), *rest))


# -- facts known from a model's name -------------------------------------------------------------------------------

_GPT_5 = r"(?:^|[^a-z0-9])gpt-?[5-9](?!\d)"
_O_SERIES = r"(?:^|[/.:@]|(?:openai|azure)[-_])o[1-9](?![a-z0-9])"
_NEW_LIMIT = re.compile(f"{_GPT_5}|{_O_SERIES}")
_ALWAYS_REASONS = re.compile(rf"(?:^|[^a-z0-9])gpt-?5(?![.\d])(?!.*chat)|{_O_SERIES}")
_REASONS_BY_DEFAULT = re.compile(r"(?:^|[^a-z0-9])gpt-?(?:5\.[5-9]|[6-9](?!\d))(?!.*chat)")
_CAN_REASON = re.compile(r"(?:^|[^a-z0-9])gpt-?[5-9](?!.*chat)")


def limit_field_of(spec: ModelSpec, model: str, *, is_renamed: bool) -> LimitField:
    """The request field for the limit on output tokens: the user's setting, else by server and model family.

    OpenAI's reasoning models refuse the old name; older models and most servers know only the old one. `is_renamed`
    says that the model is known to take the new one.
    """
    chosen = setting_of(spec, "token_limit_field", _LIMIT_FIELDS)
    if chosen is not None:
        return chosen
    return "max_completion_tokens" if is_renamed or _NEW_LIMIT.search(model.lower()) else "max_tokens"


def reasons_by_default(model: str) -> bool:
    """Whether `model` is one of OpenAI's that reason unless a request turns it off.

    They are the o series, GPT-5, and GPT-5.5 and later. GPT-5.1 to GPT-5.4 reason only on request.
    """
    return _always_reasons(model) or _REASONS_BY_DEFAULT.search(model.lower()) is not None


def _always_reasons(model: str) -> bool:
    """Whether `model` is one of OpenAI's that always reason: the o series and GPT-5."""
    return _ALWAYS_REASONS.search(model.lower()) is not None


def check_temperature(spec: ModelSpec, model: str) -> None:
    """Refuse a temperature for which every call of `model` would be refused.

    OpenAI's reasoning models take 1 only: the o series and GPT-5 always, later ones while they reason. Whether a model
    reasons by default is used at the provider itself only, since a gateway may drop parameters that a model refuses.
    """
    temperature = spec.params.get("temperature", spec.temperature)
    effort = spec.request_params.get("reasoning_effort")
    always = _always_reasons(model)
    is_direct = spec.dialect == "azure" or (spec.dialect == "openai" and spec.base_url is None)
    if effort is None:
        reasons = is_direct and reasons_by_default(model)
    else:
        reasons = effort != "none" and _CAN_REASON.search(model.lower()) is not None
    if temperature not in (None, 1) and (reasons or always):
        raise ConfigError(
            f"temperature={temperature!r}: {spec.model!r} is of a family of reasoning models, which take 1 only; "
            f"leave it out{'' if always else ', or turn reasoning off (reasoning_effort), if the model can'}."
        )
