"""Dagster's side of checks: declarations, specs, and results after a materialization.

A missing column, a threshold out of range or two checks of one name are errors when the definitions load, before the
rows are paid for. Results belong to the run. On a partitioned asset they are about the partition of the run, which they
name; the asset shows the last one.
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


def fit_checks(declared: Sequence[Check | Mapping[str, Any]], task: Task) -> dict[str, Check]:
    """Parse and validate checks for the output of `task`; returns them by name.

    A mapping has the `type` of a check and its arguments.

    Raises:
        ConfigError: One is not valid, or two have the same name.
    """
    checks: dict[str, Check] = {}
    for declaration in declared:
        check: Any = _parse(declaration) if isinstance(declaration, Mapping) else declaration
        if isinstance(check, type) and issubclass(check, Check):
            required = [field.name for field in fields(check) if field.default is field.default_factory]
            arguments = ", ".join(f"{name}=..." for name in required)
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


def _parse(declaration: Mapping[str, Any]) -> Check:
    arguments = dict(declaration)
    type_name = str(arguments.pop("type", None))
    kind = next((kind for kind in KINDS if kind.type == type_name), None)
    if kind is None:
        raise ConfigError(f"A check has type={declaration.get('type')!r}; valid are {_valid_types()}.")
    valid = [field.name for field in fields(kind)]
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
    """The specs of `checks`."""
    return [
        dg.AssetCheckSpec(name, asset=asset, blocking=check.blocking, description=check.describe())
        for name, check in checks.items()
    ]


def labelled_inputs(checks: Mapping[str, Check]) -> dict[str, dg.AssetKey]:
    """The inputs of the step for labelled rows, and the assets that have the rows."""
    keys = [check.upstream for check in checks.values()]
    return {labelled_input(key): key for key in keys if key is not None}


def check_results(checks: Mapping[str, Check], context: CheckContext) -> list[dg.AssetCheckResult]:
    """Evaluate `checks` after a run."""
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
