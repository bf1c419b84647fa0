"""LLM columns as Dagster assets: resumable row by row, with a cost cap, and with rate limits across processes."""

from dagster_shared.libraries import DagsterLibraryRegistry

from ondine_core import __version__
from ondine_core.preprocessing.media import MediaOptions
from ondine_core.preprocessing.sanitizer import Sanitizer
from ondine_core.prompts.template import Prompt
from ondine_core.providers.scripted import ScriptedModel
from ondine_dagster.asset.decorator import build_llm_asset, llm_asset
from ondine_dagster.checks.drift import DriftCheck
from ondine_dagster.checks.golden import GoldenCheck
from ondine_dagster.checks.types import CostPerRowCheck, ErrorRateCheck, NullRateCheck
from ondine_dagster.component.component import LLMAssetComponent
from ondine_dagster.config.launchpad import LLMAssetConfig
from ondine_dagster.job_sensor import batch_sensor
from ondine_dagster.resource import LLMResource, SharedBudget
from ondine_dagster.run.failed_rows import replay_failed_rows_job
from ondine_dagster.run.partitions import shards
from ondine_dagster.spend import spend_report

__all__ = [
    "CostPerRowCheck",
    "DriftCheck",
    "ErrorRateCheck",
    "GoldenCheck",
    "LLMAssetComponent",
    "LLMAssetConfig",
    "LLMResource",
    "MediaOptions",
    "NullRateCheck",
    "Prompt",
    "Sanitizer",
    "ScriptedModel",
    "SharedBudget",
    "batch_sensor",
    "build_llm_asset",
    "llm_asset",
    "replay_failed_rows_job",
    "shards",
    "spend_report",
]

DagsterLibraryRegistry.register("ondine-dagster", __version__, is_dagster_package=False)
