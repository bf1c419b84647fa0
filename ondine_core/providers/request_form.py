"""The form of requests that a chat-completions server takes, by its model's name and by what it refuses.

A server that cannot take a part of a request refuses it at no cost. That part is then written in another way, for all
following calls of the model; no row fails for it.
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
"""How a model is held to a schema: by the server; by words, with JSON enforced by the server; by words alone."""

LimitField: TypeAlias = Literal["max_tokens", "max_completion_tokens"]
_LIMIT_FIELDS: Final[tuple[LimitField, ...]] = ("max_tokens", "max_completion_tokens")


@dataclass(frozen=True, slots=True)
class RequestForm:
    """What a server takes; `subset` is what its strict mode knows, `limit_field` its word for the bound on tokens."""

    structure: Structure = "json_schema"
    subset: SchemaSubset = ALL
    limit_field: LimitField = "max_tokens"
    system_role: bool = True

    def write(self, call: Call) -> tuple[Call, bytes | None, bool]:
        """`call` as it is sent, the strict schema that goes with it, and whether JSON mode does."""
        if call.json_schema is None:
            schema, json_mode = None, False
        else:
            strict = self.structure == "json_schema"
            schema = strict_schema(call.json_schema, self.subset) if strict else None
            json_mode = self.structure == "json_object"
            call = call if schema is not None else with_schema_in_prompt(call)
        return call if self.system_role else fold_system(call), schema, json_mode

    def adapt(self, message: str, call: Call, *, has_limit: bool) -> RequestForm | None:
        """The form in which `call` may be taken, after a refusal that says `message`; `None` if the form is not why.

        `has_limit` says whether the request named a bound on output tokens.
        """
        written, schema, json_mode = self.write(call)
        if _SYSTEM_REFUSED.search(message) and any(part.role == "system" for part in written.messages):
            return replace(self, system_role=False)
        refused = _LIMIT_REFUSED.search(message) if has_limit else None
        if refused and self.limit_field in refused.groups():
            other = _LIMIT_FIELDS[self.limit_field == _LIMIT_FIELDS[0]]
            return replace(self, limit_field=other)
        if (schema or json_mode) and _SCHEMA_REFUSED.search(message):
            return replace(self, structure="words")
        return None


PLAIN_FORM: Final = RequestForm()
"""The form of most servers."""

# Said by the chat templates of Gemma, Mistral and their like on vLLM, llama.cpp, TGI and MLX, and by Gemini of Gemma.
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
    # Gemini, of which the latter is all that it says of a union of types or of a schema that is too large.
    r"|response[_ ]?schema|request contains an invalid argument",
    re.IGNORECASE,
)


# -- what the prompt says instead ---------------------------------------------------------------------------------

# A reply is checked against the schema either way, so what is lost is only that fewer replies are right at once. The
# schema is part of the fixed beginning of a call, where a provider's cache finds it.


def with_schema_in_prompt(call: Call) -> Call:
    """The same call with its schema in the system message."""
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
    """The same call with its system message at the beginning of the first user message."""
    if len(call.messages) < 2 or call.messages[0].role != "system" or call.messages[1].role != "user":  # noqa: PLR2004
        return call
    system, user, *rest = call.messages
    return replace(call, messages=(replace(user, content=f"{system.content}\n\n{user.content}"), *rest))


# -- what a model's name tells -------------------------------------------------------------------------------------

_GPT_5 = r"(?:^|[^a-z0-9])gpt-?[5-9](?!\d)"
_O_SERIES = r"(?:^|[/.:@]|(?:openai|azure)[-_])o[1-9](?![a-z0-9])"
_NEW_LIMIT = re.compile(f"{_GPT_5}|{_O_SERIES}")
_AT_ONE_TEMPERATURE = re.compile(rf"(?:^|[^a-z0-9])gpt-?5(?![.\d])(?!.*chat)|{_O_SERIES}")
_MEDIUM_BY_DEFAULT = re.compile(r"(?:^|[^a-z0-9])gpt-?(?:5\.[5-9]|[6-9](?!\d))(?!.*chat)")
_AT_ONE_WHILE_REASONING = re.compile(r"(?:^|[^a-z0-9])gpt-?[5-9](?!.*chat)")


def limit_field_of(spec: ModelSpec, model: str, *, is_renamed: bool) -> LimitField:
    """What the bound on output tokens is called: as the user says, else by the server and the family of `model`.

    OpenAI's reasoning models refuse the old name; older models and most servers know only that. `is_renamed` says
    that the model is known to take the new one.
    """
    chosen = setting_of(spec, "token_limit_field", _LIMIT_FIELDS)
    is_new = is_renamed or _NEW_LIMIT.search(model.lower())
    return chosen or ("max_completion_tokens" if is_new else "max_tokens")


def reasons_by_default(model: str) -> bool:
    """Whether the name of a model is one of OpenAI's that reason unless a request says otherwise.

    They are the o series, GPT-5, and GPT-5.5 and later. GPT-5.1 to GPT-5.4 reason only if they are asked to.
    """
    return _always_reasons(model) or _MEDIUM_BY_DEFAULT.search(model.lower()) is not None


def _always_reasons(model: str) -> bool:
    """Whether the name of a model is one of OpenAI's that reason whatever they are asked: the o series and GPT-5."""
    return _AT_ONE_TEMPERATURE.search(model.lower()) is not None


def check_temperature(spec: ModelSpec, model: str) -> None:
    """Refuse a temperature that every call of `model` would be refused for.

    OpenAI's reasoning models take 1 only: the o series and GPT-5 always, later ones while they reason. A gateway may
    leave out what a model does not take, so that a model reasons by default counts at the provider itself only.
    """
    temperature = spec.params.get("temperature", spec.temperature)
    effort = spec.request_params.get("reasoning_effort")
    always = _always_reasons(model)
    is_direct = spec.dialect == "azure" or (spec.dialect == "openai" and spec.base_url is None)
    if effort is None:
        reasons = is_direct and reasons_by_default(model)
    else:
        reasons = effort != "none" and _AT_ONE_WHILE_REASONING.search(model.lower()) is not None
    if temperature not in (None, 1) and (reasons or always):
        raise ConfigError(
            f"temperature={temperature!r}: {spec.model!r} is of a family of reasoning models, which take 1 only; "
            f"leave it out{'' if always else ', or turn reasoning off (reasoning_effort), if the model can'}."
        )
