"""The public surface: names, signatures, errors, entry points."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from importlib.metadata import entry_points, version

import pytest

import ondine_core
import ondine_dagster
from ondine_core import errors, telemetry
from ondine_core.errors import OndineError
from ondine_core.preprocessing import cleaning, sanitizer

CORE = """
    Answer AnswerStore Audit BatchStrategy BudgetExhaustedError BudgetLimit CalibrationPlan Call ChatModel Clock
    ConfigError FailedRowsError Failure FatalError MediaOptions ModelSpec OndineError Options Origin Policy Price
    Progress Prompt ProviderError Rates RefusedError Reply Report RetryPolicy Sanitizer ScriptedModel Skipped StoreError
    TransientError Usage enrich enrich_sync load_presets open_store openai_compatible preset
""".split()
RING = """
    CostPerRowCheck DriftCheck ErrorRateCheck GoldenCheck LLMAssetComponent LLMAssetConfig LLMResource
    MediaOptions NullRateCheck Prompt Sanitizer ScriptedModel SharedBudget batch_sensor build_llm_asset
    llm_asset replay_failed_rows_job shards spend_report
""".split()


CLEANING = """
    Clean Step Truncation collapse_punctuation collapse_whitespace find_steps name_of normalize_unicode strip_control
    strip_html strip_markdown truncate
""".split()
SANITIZER = """
    RULE_NAMES Sanitize Sanitized Sanitizer find_sanitizer has_placeholder redact restore sanitize
""".split()
TELEMETRY = """
    AskedBatch BatchEnded Booked CallEnded CallsEnded Content Endpoint Event Held Observer ObserverSpec Progressed
    Retried RowsFailed Run RunEnded RunStarted check_observers register_observer
""".split()


@pytest.mark.parametrize(
    ("module", "names"),
    [
        (ondine_core, CORE),
        (cleaning, CLEANING),
        (sanitizer, SANITIZER),
        (telemetry, TELEMETRY),
        (ondine_dagster, RING),
    ],
)
def test_public_names_are_those_listed(module: object, names: list[str]) -> None:
    """A public name is added or removed on purpose only."""
    assert sorted(module.__all__) == sorted(names)
    values = [getattr(module, name) for name in names]
    assert all(value.__doc__ for value in values if inspect.isclass(value) or inspect.isroutine(value))


def test_error_tree_equals_its_drawing() -> None:
    """Every error is in the drawing at the top of its module, below its base class."""
    depths = {}
    for line in (errors.__doc__ or "").splitlines():
        if found := re.match(r"([│├└─ ]*)(\w+Error)\b", line):
            depths[found[2]] = len(found[1])
    assert sorted(depths) == sorted(errors.__all__)
    for name, depth in depths.items():
        error = getattr(errors, name)
        assert error is OndineError or depths[error.__mro__[1].__name__] < depth


def test_distribution_and_packages_have_one_version() -> None:
    """`pip show` and `__version__` agree."""
    assert version("ondine-dagster") == ondine_core.__version__


def test_dg_finds_the_package() -> None:
    """It has the entry point that `dg` reads."""
    (entry,) = entry_points(group="dagster_dg_cli.registry_modules", name="ondine_dagster")
    assert entry.load() is ondine_dagster


@pytest.mark.parametrize("function", [ondine_core.Options, ondine_core.Policy, ondine_core.enrich, ondine_core.preset])
def test_signature_shows_defaults_in_short(function: Callable[..., object]) -> None:
    """`help` and notebooks show it, with the values of all defaults."""
    signature = str(inspect.signature(function))
    assert len(signature) < 2_000
    assert "functools.partial" not in signature
