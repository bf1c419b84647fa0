"""Validation of chat-completion requests by OpenAI's published description of its API."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson
from jsonschema import Draft202012Validator

__all__ = ["request_faults"]

_DESCRIPTION = orjson.loads(Path(__file__).with_name("openai_chat_request.json").read_bytes())
# The description allows additional fields; here a field that it does not name is an error.
_VALIDATOR = Draft202012Validator({**_DESCRIPTION, "unevaluatedProperties": False})


def request_faults(body: Mapping[str, Any]) -> list[str]:
    """The places where a request's body violates the description."""
    return [f"{fault.json_path}: {fault.message}" for fault in _VALIDATOR.iter_errors(body)]
