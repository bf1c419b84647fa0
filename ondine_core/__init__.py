"""Answer a question about every row of a table with a language model: resumable, paced, and at a known cost."""

from __future__ import annotations

from ondine_core.batching import Strategy
from ondine_core.books import Audit, Origin
from ondine_core.calibration import CalibrationPlan
from ondine_core.caps import Cap
from ondine_core.enrichment import enrich, enrich_sync
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
from ondine_core.options import Options
from ondine_core.policy import Clock, Policy
from ondine_core.ports import AnswerStore, ChatModel
from ondine_core.presets import load_presets, openai_compatible, preset
from ondine_core.pricing import Price
from ondine_core.prompts import Prompt
from ondine_core.providers.scripted import ScriptedModel
from ondine_core.rate_limiter import Rates
from ondine_core.report import Progress, Report
from ondine_core.retry import RetryPolicy
from ondine_core.sanitizer import Sanitizer
from ondine_core.store import open_store
from ondine_core.values import Answer, Call, Failure, ModelSpec, Reply, Skipped, Usage

__all__ = [
    "Answer",
    "AnswerStore",
    "Audit",
    "BudgetExhaustedError",
    "CalibrationPlan",
    "Call",
    "Cap",
    "ChatModel",
    "Clock",
    "ConfigError",
    "FailedRowsError",
    "Failure",
    "FatalError",
    "ModelSpec",
    "OndineError",
    "Options",
    "Origin",
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
    "Sanitizer",
    "ScriptedModel",
    "Skipped",
    "StoreError",
    "Strategy",
    "TransientError",
    "Usage",
    "enrich",
    "enrich_sync",
    "load_presets",
    "open_store",
    "openai_compatible",
    "preset",
]

__version__ = "0.1.0"
