"""The site holds together: it builds, every page is in it, and what it says of the code is so."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import dagster as dg
import pytest
import yaml
from dagster.components.testing import create_defs_folder_sandbox

import ondine_core
import ondine_dagster

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = {str(page.relative_to(DOCS)): page.read_text(encoding="utf-8") for page in sorted(DOCS.rglob("*.md"))}
COMPONENTS = [
    pytest.param(text, id=name)
    for name, page in PAGES.items()
    for text in re.findall(r"^```yaml[^\n]*\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    if text.startswith("type: ondine_dagster.")
]


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


@pytest.mark.filterwarnings("ignore:Class `(LocalFileCodeReference|CodeReferencesMetadataValue)`")
@pytest.mark.filterwarnings("ignore:`parse_obj_as` is deprecated")
@pytest.mark.filterwarnings("ignore:Function `load_definitions_from_modules?`")
@pytest.mark.parametrize("text", COMPONENTS)
def test_yaml_of_a_guide_loads(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each component that a page shows becomes an asset."""
    monkeypatch.setenv("OPENAI_API_KEY", "a key")
    shown = yaml.safe_load(text)
    with create_defs_folder_sandbox() as sandbox:
        (sandbox.defs_folder_path / "shown").mkdir()
        (sandbox.defs_folder_path / "shown" / "defs.yaml").write_text(text, encoding="utf-8")
        above = f"import dagster as dg\n\nabove = dg.AssetSpec({shown['attributes']['upstream']!r})\n"
        (sandbox.defs_folder_path / "above.py").write_text(above, encoding="utf-8")
        (sandbox.defs_folder_path / "shown" / "prompt.md").write_text("About {ticket}", encoding="utf-8")
        with sandbox.build_all_defs() as definitions:
            keys = {key.to_user_string() for key in definitions.resolve_all_asset_keys()}
    assert dg.AssetKey.from_user_string(shown["attributes"]["asset"]["key"]).to_user_string() in keys


def test_at_least_one_component_is_shown() -> None:
    """The test above has something to load."""
    assert COMPONENTS


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
