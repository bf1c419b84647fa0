"""The site holds together: it builds, every page is in it, and what it says of the code is so."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import ondine_core
import ondine_dagster

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = {str(page.relative_to(DOCS)): page.read_text(encoding="utf-8") for page in sorted(DOCS.rglob("*.md"))}


def test_the_site_builds_and_no_link_leads_nowhere(tmp_path: Path) -> None:
    """Pages, anchors, pictures and the names of the reference; a page that the menu lacks is an error, too."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    quiet = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    ended = subprocess.run(command, cwd=ROOT, env=quiet, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    reference = (tmp_path / "reference" / "index.html").read_text(encoding="utf-8")
    for module in (ondine_core, ondine_dagster):
        missing = [name for name in module.__all__ if not re.search(rf'id="ondine_\w+(\.\w+)*\.{name}"', reference)]
        assert missing == []


def test_the_messages_that_are_explained_exist() -> None:
    """Each heading that quotes a message quotes one of ours."""
    source = "\n".join(
        constants(file) for name in ("ondine_core", "ondine_dagster") for file in (ROOT / name).rglob("*.py")
    )
    quoted = re.findall(r"^### `(.+)`$", PAGES["troubleshooting.md"], re.MULTILINE)
    assert len(quoted) >= 15
    for message in quoted:
        pattern = ".*".join(re.escape(part.strip()) for part in message.split("…"))
        assert re.search(pattern, source), message


def constants(file: Path) -> str:
    """The texts of a module, one a line, with nothing where values go; adjoining literals are one text."""
    lines = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.JoinedStr):
            lines.append(" ".join(part.value for part in node.values if isinstance(part, ast.Constant)))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            lines.append(node.value)
    return "\n".join(lines)


def test_the_tests_that_hold_the_laws_exist() -> None:
    """Each test that the page on architecture names is a function in that file."""
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", PAGES["architecture.md"])
    assert len(named) >= 20
    for file, test in named:
        functions = {
            node.name for node in ast.parse((ROOT / file).read_text(encoding="utf-8")).body if hasattr(node, "name")
        }
        assert test in functions, f"{file}::{test}"


def test_the_front_door_is_short() -> None:
    """The README is read in one sitting, and leads on."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert 150 <= readme.count("\n") <= 260
    assert {"docs/quickstart.md", "docs/index.md"} <= set(re.findall(r"\]\(([^)]+)\)", readme))
