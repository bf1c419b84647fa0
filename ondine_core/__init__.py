"""Answer a question about every row of a table with a language model: resumable, paced, and at a known cost."""

from __future__ import annotations

from ondine_core.enrichment import Options, enrich, enrich_sync
from ondine_core.errors import (
    BudgetExhaustedError,
    ConfigError,
    FailedRowsError,
    FatalError,
    OndineError,
    ProviderError,
    RefusedError,
    StoreError,
    TransientError,
)
from ondine_core.policy import Clock, Policy
from ondine_core.pricing import Price
from ondine_core.prompts import Prompt
from ondine_core.providers.scripted import ScriptedModel
from ondine_core.rate_limiter import Rates
from ondine_core.report import Progress, Report
from ondine_core.retry import RetryPolicy
from ondine_core.store import open_store
from ondine_core.values import Answer, AnswerStore, Call, ChatModel, Failure, ModelSpec, Reply, Usage

__all__ = [
    "Answer",
    "AnswerStore",
    "BudgetExhaustedError",
    "Call",
    "ChatModel",
    "Clock",
    "ConfigError",
    "FailedRowsError",
    "Failure",
    "FatalError",
    "ModelSpec",
    "OndineError",
    "Options",
    "Policy",
    "Price",
    "Progress",
    "Prompt",
    "ProviderError",
    "Rates",
    "RefusedError",
    "Reply",
    "Report",
    "RetryPolicy",
    "ScriptedModel",
    "StoreError",
    "TransientError",
    "Usage",
    "enrich",
    "enrich_sync",
    "open_store",
]

__version__ = "0.1.0"
