"""Answer a question about every row of a table with a language model: resumable, paced, and at a known cost."""

from __future__ import annotations

from ondine_core.api import enrich, enrich_sync
from ondine_core.batching.calibration import CalibrationPlan
from ondine_core.batching.strategy import BatchStrategy
from ondine_core.engine.options import Options
from ondine_core.engine.policy import Policy
from ondine_core.engine.report import Report
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
from ondine_core.limits.budget_limit import BudgetLimit
from ondine_core.limits.rates import Rates
from ondine_core.limits.retry import RetryPolicy
from ondine_core.preprocessing.media import MediaOptions
from ondine_core.preprocessing.sanitizer import Sanitizer
from ondine_core.presets import load_presets, openai_compatible, preset
from ondine_core.prompts.template import Prompt
from ondine_core.providers.pricing import Price
from ondine_core.providers.scripted import ScriptedModel
from ondine_core.store import open_store
from ondine_core.types.clock import Clock
from ondine_core.types.ledger import Audit, Origin
from ondine_core.types.progress import Progress
from ondine_core.types.protocols import AnswerStore, ChatModel
from ondine_core.types.values import Answer, Call, Failure, ModelSpec, Reply, Skipped, Usage

__all__ = [
    "Answer",
    "AnswerStore",
    "Audit",
    "BatchStrategy",
    "BudgetExhaustedError",
    "BudgetLimit",
    "CalibrationPlan",
    "Call",
    "ChatModel",
    "Clock",
    "ConfigError",
    "FailedRowsError",
    "Failure",
    "FatalError",
    "MediaOptions",
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
