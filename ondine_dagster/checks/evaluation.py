"""Checks in Dagster's terms: their declaration, their specs, and their results after a materialization.

A missing column, a threshold out of range or two checks of one name are errors when the definitions load, not after the
rows are paid for. Results belong to the run. On a partitioned asset they are about the partition that was filled, and
say which; the asset shows the last one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import dagster as dg

from ondine_core.errors import ConfigError
from ondine_core.prompts.task import Task
from ondine_dagster.checks.check import Check, CheckContext
from ondine_dagster.checks.golden import labelled_input
from ondine_dagster.checks.types import KINDS


def fit_checks(given: Sequence[Check | Mapping[str, Any]], task: Task) -> dict[str, Check]:
    """Checks by name, valid for the output of `task`.

    A mapping has the `type` of a check and its arguments.
    """
    checks: dict[str, Check] = {}
    for one in given:
        check: Any = _parse(one) if isinstance(one, Mapping) else one
        if isinstance(check, type) and issubclass(check, Check):
            needed = [each.name for each in fields(check) if each.default is each.default_factory]
            arguments = ", ".join(f"{name}=..." for name in needed)
            raise ConfigError(f"checks has the class {check.__name__}; give a check, {check.__name__}({arguments}).")
        if not isinstance(check, Check):
            raise ConfigError(f"checks has a {type(check).__name__}; valid are {_valid_types()}.")
        check.validate(task)
        name = check.name or check.default_name()
        if not re.fullmatch(r"\w+", name, re.ASCII):
            raise ConfigError(f"The name {name!r} of a check may have letters, digits and underscores only.")
        if name in checks:
            raise ConfigError(f"Two checks are called {name!r}; give one of them another name=.")
        checks[name] = check
    return checks


def _parse(given: Mapping[str, Any]) -> Check:
    arguments = dict(given)
    wanted = str(arguments.pop("type", None))
    kind = next((kind for kind in KINDS if kind.type == wanted), None)
    if kind is None:
        raise ConfigError(f"A check has type={given.get('type')!r}; valid are {_valid_types()}.")
    valid = [each.name for each in fields(kind)]
    unknown = [name for name in arguments if name not in valid]
    if unknown:
        raise ConfigError(f"The check {kind.type!r} has no {unknown[0]!r}; valid are {', '.join(map(repr, valid))}.")
    try:
        return kind(**arguments)
    except TypeError:
        raise ConfigError(f"The check {kind.type!r} lacks an argument of {', '.join(map(repr, valid))}.") from None


def _valid_types() -> str:
    return ", ".join(repr(kind.type) for kind in KINDS)


def check_specs(checks: Mapping[str, Check], asset: dg.AssetKey) -> list[dg.AssetCheckSpec]:
    """Specs of `checks`, by name."""
    return [
        dg.AssetCheckSpec(name, asset=asset, blocking=check.blocking, description=check.describe())
        for name, check in checks.items()
    ]


def labelled_inputs(checks: Mapping[str, Check]) -> dict[str, dg.AssetKey]:
    """The inputs of the step that have labelled rows, and their assets."""
    keys = [check.upstream for check in checks.values()]
    return {labelled_input(key): key for key in keys if key is not None}


def check_results(checks: Mapping[str, Check], context: CheckContext) -> list[dg.AssetCheckResult]:
    """Evaluate `checks`, by name, of a finished run."""
    asset = context.step.asset_key_for_output()
    results = []
    for name, check in checks.items():
        passed, description, metadata = check.evaluate(context)
        severity = dg.AssetCheckSeverity.ERROR if check.blocking else dg.AssetCheckSeverity.WARN
        results.append(
            dg.AssetCheckResult(
                passed=passed,
                asset_key=asset,
                check_name=name,
                severity=severity,
                description=description,
                metadata=metadata,
            )
        )
    return results
