"""Removes personal data and secrets from a row before anything else sees it: rules as data, and three modes.

A row is sanitized before it is rendered, so no raw data reach a key, the store, a log or a provider. Rows that are
equal after that share one answer; if the answer repeats a placeholder, each row gets its own data back.
"""

from __future__ import annotations

from ondine_core.preprocessing.sanitizer.marking import Sanitized, has_placeholder, redact, restore, sanitize
from ondine_core.preprocessing.sanitizer.rule_settings import RULE_NAMES, Sanitize, Sanitizer, find_sanitizer

__all__ = [
    "RULE_NAMES",
    "Sanitize",
    "Sanitized",
    "Sanitizer",
    "find_sanitizer",
    "has_placeholder",
    "redact",
    "restore",
    "sanitize",
]
