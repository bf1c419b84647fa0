"""Ephemeral Dagster instances that are used again, because making one takes longer than running a small asset."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dagster as dg

_idle: list[dg.DagsterInstance] = []


@contextmanager
def ephemeral() -> Iterator[dg.DagsterInstance]:
    """An empty instance in memory with a temporary folder, which is emptied afterwards."""
    instance = _idle.pop() if _idle else dg.DagsterInstance.ephemeral()
    try:
        yield instance
    finally:
        instance.wipe()
        for entry in Path(instance.root_directory).iterdir():
            shutil.rmtree(entry)
        _idle.append(instance)


def materialize(*args: Any, **options: Any) -> dg.ExecuteInProcessResult:
    """Call `dg.materialize`, on an ephemeral instance if `options` give no other."""
    if "instance" in options:
        return dg.materialize(*args, **options)
    with ephemeral() as instance:
        return dg.materialize(*args, instance=instance, **options)
