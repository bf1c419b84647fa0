"""Materialize an asset over many rows of image paths in a process of its own, and measure its memory.

`python -m tests.support.image_rows <folder> <provider> <rows> <file with one path a line>`. DAGSTER_HOME stores the
answers; the paths are repeated until there are as many as rows.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import dagster as dg
import pandas as pd

from ondine_dagster import LLMResource, MediaOptions, Prompt, llm_asset


def memory_mib(name: str) -> float:
    """This process's memory by the kernel: `VmRSS` (now) or `VmHWM` (maximum)."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    (line,) = [line for line in lines if line.startswith(f"{name}:")]
    return int(line.split()[1]) / 1024


def main(folder: str, base_url: str, rows: str, file: str) -> None:
    """Materialize, and print calls, rows and memory as JSON."""
    paths = Path(file).read_text(encoding="utf-8").split()
    frame = pd.DataFrame({"photo": [paths[number % len(paths)] for number in range(int(rows))]})

    @llm_asset(
        prompt=Prompt("What is it?\n{photo:image}", media=MediaOptions(root=folder)),
        output={"answer": str},
        io_manager_key="memory",
    )
    def answers() -> pd.DataFrame:
        return frame

    resources: dict[str, Any] = {
        "llm": LLMResource(model="openai_compatible/eyes", base_url=base_url, max_concurrency=16),
        "memory": dg.mem_io_manager,
    }
    before = memory_mib("VmRSS")
    with dg.DagsterInstance.get() as instance:
        result = dg.materialize([answers], resources=resources, instance=instance)
    (event,) = result.asset_materializations_for_node("answers")
    figures = {name: getattr(entry, "value", None) for name, entry in event.metadata.items()}
    wanted = ("ondine/requests", "ondine/rows_total", "ondine/rows_failed")
    mib = memory_mib("VmHWM") - before
    sys.stdout.write(json.dumps({name: figures[name] for name in wanted} | {"mib": mib}))


if __name__ == "__main__":
    main(*sys.argv[1:])
