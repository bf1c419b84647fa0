"""Classifies the finish reasons of replies: only the text of a reply with a reason listed as whole is an answer.

The words come from the references of the providers and the sources of the servers named beside them. An unlisted reason
counts as cut, since half a sentence that was kept would never be asked again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

FinishKind: TypeAlias = Literal["whole", "cut", "tool", "broken", "refused"]
"""The model finished; a limit cut it; it called a tool; the server failed or stopped it; a filter stopped it."""

_WORDS: Mapping[FinishKind, str] = {
    # OpenAI and most others: stop. Together: eos. Text Generation Inference: eos_token, stop_sequence. Anthropic and
    # Bedrock: end_turn, stop_sequence. Cohere: COMPLETE, STOP_SEQUENCE. Gemini: STOP. llama.cpp: eos, word. AI21:
    # endoftext. OpenRouter passes on what OpenAI's Responses API says: completed. Baidu: normal.
    "whole": "stop eos eos_token end_turn stop_sequence complete completed word endoftext normal",
    # OpenAI: length. Anthropic: max_tokens, pause_turn, compaction. Mistral: model_length. Gemini: MAX_TOKENS. Bedrock,
    # Anthropic and z.ai: model_context_window_exceeded. Cohere: ERROR_LIMIT. Watsonx: token_limit, time_limit,
    # not_finished. llama.cpp: limit. Qwen writes the text null while it is not done. DeepSeek: repetition_truncation.
    "cut": (
        "length max_tokens model_length model_context_window_exceeded max_output_tokens token_limit time_limit limit "
        "incomplete not_finished pause_turn compaction error_limit repetition_truncation null"
    ),
    # OpenAI; Anthropic: tool_use; Cohere: TOOL_CALL; Gemini: its malformed and unexpected calls.
    "tool": (
        "tool_calls function_call tool_use tool_call malformed_function_call unexpected_tool_call too_many_tool_calls "
        "malformed_tool_use"
    ),
    # OpenRouter, Mistral, vLLM: error. vLLM and SGLang: abort. DeepSeek: insufficient_system_resource. Cohere: TIMEOUT,
    # USER_CANCEL. z.ai: network_error. Watsonx: cancelled. Ollama: load, unload. Gemini: MALFORMED_RESPONSE, and
    # FINISH_REASON_UNSPECIFIED. Bedrock: malformed_model_output.
    "broken": (
        "error abort aborted insufficient_system_resource timeout user_cancel cancelled canceled network_error load "
        "unload malformed_response malformed_model_output finish_reason_unspecified missing_thought_signature failed"
    ),
    # OpenAI and Azure: content_filter. Anthropic: refusal. Gemini: the rest of its enumeration. Bedrock:
    # guardrail_intervened, content_filtered. Cohere: ERROR_TOXIC. z.ai: sensitive.
    "refused": (
        "content_filter content_filtered content-filter refusal safety recitation blocklist prohibited_content spii "
        "language other image_safety image_prohibited_content image_recitation image_other no_image escalation "
        "guardrail_intervened error_toxic sensitive moderation"
    ),
}
_KINDS: Mapping[str, FinishKind] = {word: kind for kind, words in _WORDS.items() for word in words.split()}


def finish_kind(finish_reason: str, *, unknown: FinishKind = "cut") -> FinishKind:
    """The kind of a finish reason in upper or lower case; `unknown` if it is not listed.

    Gemini's address for OpenAI's dialect writes two, as in `content_filter: PROHIBITED_CONTENT`.
    """
    general, _, exact = finish_reason.lower().partition(":")
    return _KINDS.get(exact.strip()) or _KINDS.get(general.strip(), unknown)


def native_finish_reason(data: Mapping[str, Any]) -> str | None:
    """The provider's own finish reason in a response of any dialect; `None` if there is none.

    Libraries and routers replace reasons that they do not know by `stop`.
    """
    candidates = data.get("candidates") or data.get("choices") or ()
    first = candidates[0] if isinstance(candidates, list) and candidates else {}
    choice = first if isinstance(first, Mapping) else {}
    fields = (
        (choice, "native_finish_reason"),  # OpenRouter
        (choice, "finishReason"),  # Gemini
        (data, "stop_reason"),  # Anthropic
        (data, "stopReason"),  # Bedrock
        (data, "finish_reason"),  # Cohere
        (choice, "finish_reason"),
    )
    reasons = (owner.get(name) for owner, name in fields)
    return next((reason for reason in reasons if isinstance(reason, str) and reason), None)
