"""What importing loads and costs, and the layers that imports must keep."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import Counter
from collections.abc import Container
from graphlib import TopologicalSorter
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
# A package may import packages of the lines above its own, and none of its own line.
CORE_LAYERS = """
    types
    errors
    providers store
    presets preprocessing
    prompts limits telemetry
    batching
    engine
    api commands
    __init__
""".split("\n")
DAGSTER_LAYERS = """
    config frames
    resource reporting
    checks spend
    run
    asset job_sensor
    component
    __init__
""".split("\n")


def run(code: str, *options: str) -> str:
    return subprocess.run([sys.executable, *options, "-c", code], check=True, capture_output=True, text=True).stdout


@pytest.mark.parametrize(
    ("package", "unwanted"), [("ondine_core", (*HEAVY, "dagster", "pandas", "narwhals")), ("ondine_dagster", HEAVY)]
)
def test_importing_loads_nothing_heavy(package: str, unwanted: tuple[str, ...]) -> None:
    """Every step is a process of its own, which pays for its imports."""
    before = "import dagster" if package == "ondine_dagster" else "pass"
    code = f"import sys; {before}; old = set(sys.modules); import {package}; print(*(set(sys.modules) - old))"
    loaded = {name.partition(".")[0] for name in run(code).split()}
    assert loaded.isdisjoint(unwanted)


def test_importing_costs_little_beyond_dagster(tmp_path: Path) -> None:
    """At most a quarter of the time of `import dagster`, both uncompiled as in a new container.

    A ratio, since a busy machine makes both slower; the first measurement within the bound counts.
    """
    code = (
        "from time import process_time as now; start = now(); import dagster; middle = now(); import ondine_dagster; "
        "print((now() - middle) / (middle - start))"
    )
    options = ("-B", "-X", f"pycache_prefix={tmp_path}")
    assert any(float(run(code, *options)) <= 0.25 for _ in range(4))


@pytest.mark.parametrize(
    ("package", "layers", "most"), [("ondine_core", CORE_LAYERS, 13), ("ondine_dagster", DAGSTER_LAYERS, 10)]
)
def test_packages_import_only_lower_layers(package: str, layers: list[str], most: int) -> None:
    """No cycle between packages, and the core does not import Dagster. Commands (`__main__`) may import everything.

    A package has few entries at its top (`most`, without `__init__`), so that a reader finds the right one.
    """
    layer_of = {name: number for number, line in enumerate(layers) for name in line.split()}
    entries = {file.relative_to(ROOT / package).parts[0].removesuffix(".py") for file in (ROOT / package).rglob("*.py")}
    assert entries == layer_of.keys()
    assert len(entries) - 1 <= most
    for file in (ROOT / package).rglob("*.py"):
        place = file.relative_to(ROOT / package).parts[0].removesuffix(".py")
        for imported in imports(file):
            head, _, rest = imported.partition(".")
            if package == "ondine_core":
                assert head not in ("dagster", "ondine_dagster"), f"{file} imports {imported}"
            if head == package and file.stem != "__main__":
                other = rest.partition(".")[0]
                other = other if other in layer_of else "__init__"
                assert other == place or layer_of[other] < layer_of[place], f"{file} imports {imported}"


@pytest.mark.parametrize("package", ["ondine_core", "ondine_dagster"])
def test_modules_have_no_import_cycle(package: str) -> None:
    """Neither directly nor through others."""
    files = {module_of(file): file for file in (ROOT / package).rglob("*.py")}
    graph = {name: {owner(found, files) for found in imports(file)} - {name} for name, file in files.items()}
    tuple(TopologicalSorter(graph).static_order())


@pytest.mark.parametrize("package", ["ondine_core", "ondine_dagster"])
def test_no_two_modules_of_a_package_share_a_name(package: str) -> None:
    """A file is found by its name alone."""
    names = Counter(file.name for file in (ROOT / package).rglob("*.py") if not file.name.startswith("__"))
    assert [name for name, files in names.items() if files > 1] == []


def module_of(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def owner(imported: str, modules: Container[str]) -> str:
    """The module that is imported, or that defines an imported name."""
    return imported if imported in modules else imported.rpartition(".")[0]


def imports(file: Path) -> list[str]:
    """What a file imports, in full: `a.b.c` for `from a.b import c`."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    names = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names
