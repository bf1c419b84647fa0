"""LLM columns as Dagster assets: resumable by the row, capped in cost, paced across processes."""

from dagster_shared.libraries import DagsterLibraryRegistry

from ondine_core import __version__
from ondine_core.prompts import Prompt
from ondine_core.providers.scripted import ScriptedModel
from ondine_core.sanitizer import Sanitizer
from ondine_dagster.assets import build_llm_asset, llm_asset
from ondine_dagster.checks import CostPerRowCheck, DriftCheck, ErrorRateCheck, GoldenCheck, NullRateCheck
from ondine_dagster.component import LLMAssetComponent
from ondine_dagster.config import LLMAssetConfig
from ondine_dagster.dead_letters import replay_failed_rows_job
from ondine_dagster.partitions import shards
from ondine_dagster.resources import LLMResource, SharedBudget
from ondine_dagster.spend import spend_report

__all__ = [
    "CostPerRowCheck",
    "DriftCheck",
    "ErrorRateCheck",
    "GoldenCheck",
    "LLMAssetComponent",
    "LLMAssetConfig",
    "LLMResource",
    "NullRateCheck",
    "Prompt",
    "Sanitizer",
    "ScriptedModel",
    "SharedBudget",
    "build_llm_asset",
    "llm_asset",
    "replay_failed_rows_job",
    "shards",
    "spend_report",
]

DagsterLibraryRegistry.register("ondine-dagster", __version__, is_dagster_package=False)
