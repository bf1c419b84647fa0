"""What importing costs, and which way imports may point."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEAVY = (
    "litellm",
    "openai",
    "azure",
    "mlx",
    "torch",
    "xllamacpp",
    "tiktoken",
    "aiohttp",
    "polars",
    "pyarrow",
    "matplotlib",
    "ipywidgets",
)
# Each module may import those above it; packages and their modules count as one.
CORE = (
    "values finish_reasons reasoning books ports errors patterns addresses pricing charges context_limits tokens "
    "prompt_window presets cost_tracker cleaning cells sanitizer preparation json_schema strict_schema prompts schema "
    "question notations records batching packing batch_size stages definition kept_reply agreement calibration rates "
    "rate_limiter retry limits processes caps budget_state budget store lease other_runs policy means providers "
    "outcomes frame_columns report progress_bar tally telemetry errand calling refusals sizes asking engine reading "
    "thread garbage options enrichment estimate __init__ __main__"
).split()
RING = (
    "frames markdown messages tables showing report strict variables config resources spend partitions plots checks "
    "scores fitting drift golden judging dead_letters trial watch planning asset_arguments arguments step specs "
    "wrapping assets templates attributes check_attributes own_model scaffolder component __init__"
).split()


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout


@pytest.mark.parametrize(
    ("package", "unwanted"), [("ondine_core", (*HEAVY, "dagster", "pandas", "narwhals")), ("ondine_dagster", HEAVY)]
)
def test_importing_loads_nothing_heavy(package: str, unwanted: tuple[str, ...]) -> None:
    """Every step is a process of its own, so what is imported is paid at every step."""
    before = "import dagster" if package == "ondine_dagster" else "pass"
    code = f"import sys; {before}; old = set(sys.modules); import {package}; print(*(set(sys.modules) - old))"
    loaded = {name.partition(".")[0] for name in run(code).split()}
    assert loaded.isdisjoint(unwanted)


def test_importing_costs_little_beyond_dagster() -> None:
    """At most a quarter of what `import dagster` takes; as a ratio, since a busy machine makes both slower."""
    code = (
        "from time import process_time as now; start = now(); import dagster; middle = now(); import ondine_dagster; "
        "print((now() - middle) / (middle - start))"
    )
    assert min(float(run(code)) for _ in range(3)) <= 0.25


@pytest.mark.parametrize(("package", "order"), [("ondine_core", CORE), ("ondine_dagster", RING)])
def test_modules_import_only_modules_above_them(package: str, order: list[str]) -> None:
    """The house has no cycle, and the core knows nothing of Dagster."""
    for file in (ROOT / package).rglob("*.py"):
        place = file.relative_to(ROOT / package).parts[0].removesuffix(".py")
        for imported in imports(file):
            head, _, rest = imported.partition(".")
            if package == "ondine_core":
                assert head not in ("dagster", "ondine_dagster"), f"{file} imports {imported}"
            if head == package:
                other = rest.partition(".")[0] or "__init__"
                assert other == place or order.index(other) < order.index(place), f"{file} imports {imported}"


def imports(file: Path) -> list[str]:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    names = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    return names + [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
