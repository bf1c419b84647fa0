"""Removes personal data and secrets from a row before anything else sees it: rules as data, and three modes.

A row is sanitized before it is rendered, so nothing raw reaches a key, the store, a log or a provider. Rows that are
equal once sanitized share one answer; where it repeats a placeholder, each gets its own data back.
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
