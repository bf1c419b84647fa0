"""Private words that the code used for standard terms must not return."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from pathlib import Path

ROOT = Path(__file__).parents[2]
OLD = frozenset(
    """
    Errand Conclude _Fate Conclusion Verdict Means Terms Suspect Ticket Ending acquit blame Pacer _Flood ride_s Gate
    Throttle Purse Cap Hold Sent Settled Line Stage Question Tally Told Feed Rest Notation Strategy Preparation
    Treatment steady in_words watching wording Evidence _say _rehearse letters on_trouble
    """.split()
)
OLD_WORDS = frozenset(
    """
    errand fate purse tally notation ticket blame acquit pacer beginnings picker evidence patience came told
    """.split()
)
"""Words that no identifier has as a part."""
OLD_WORDS_OF_TESTS = frozenset(
    """
    errand purse purses told whoever whom nobody everybody somebody befall befalls befell throttle
    """.split()
)
"""Words that neither the name nor the docstring of a test has."""
OLD_WORDS_OF_OTHER_CODE = OLD_WORDS - {"ticket"} | {"said", "heard", "whoever", "somebody", "nobody", "everybody"}
"""Words that no identifier of the Dagster package, the example and the tests has as a part; their rows are tickets."""
OLD_PHRASES = re.compile(
    r"\b(?:hand(?:s|ed)? in|told|whoever|somebody|nobody|everybody|what came of|looked at|for want of|by and by)\b"
)
"""Phrases that no page, docstring, comment or message has; a job is submitted, for instance, and not handed in."""


def names(file: Path) -> set[str]:
    """The identifiers of a module, without its texts and comments."""
    tokens = tokenize.generate_tokens(io.StringIO(file.read_text(encoding="utf-8")).readline)
    return {token.string for token in tokens if token.type == tokenize.NAME}


def words(name: str) -> list[str]:
    """The words of an identifier in snake case or camel case, in small letters."""
    return [word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name)]


def test_code_uses_standard_terms() -> None:
    """No identifier of the two packages is one of the private words."""
    for package in ("ondine_core", "ondine_dagster"):
        for file in (ROOT / package).rglob("*.py"):
            found = names(file)
            assert not found & OLD, file
            assert not {word for name in found for word in words(name)} & OLD_WORDS, file
            assert not [name for name in found if name.lower().lstrip("_").startswith("longest_")], file


def test_code_around_the_core_uses_standard_terms() -> None:
    """No identifier of the Dagster package, the example and the tests has a private word as a part."""
    for folder in ("ondine_dagster", "example_project/src", "tests"):
        for file in (ROOT / folder).rglob("*.py"):
            assert not {word for name in names(file) for word in words(name)} & OLD_WORDS_OF_OTHER_CODE, file


def test_texts_use_standard_phrases() -> None:
    """No docstring, comment or message of the packages and the example, and no page, has one of the old phrases."""
    packages = [file for folder in ("ondine_core", "ondine_dagster") for file in (ROOT / folder).rglob("*.py")]
    example = list((ROOT / "example_project" / "src").rglob("*.py"))
    pages = [*(ROOT / "docs").rglob("*.md"), *ROOT.glob("*.md")]
    for file in (*packages, *example, *pages):
        assert OLD_PHRASES.findall(file.read_text(encoding="utf-8")) == [], file


def test_names_and_docstrings_of_tests_use_standard_terms() -> None:
    """No test's name or docstring has one of the words that once stood for a standard term."""
    for file in (ROOT / "tests").rglob("test_*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
                text = f"{node.name.replace('_', ' ')} {ast.get_docstring(node)}".lower()
                without_code = re.sub(r"`[^`]*`", "", text)
                assert not OLD_WORDS_OF_TESTS & set(re.findall(r"[a-z]+", without_code)), (file, node.name)


def test_documents_use_standard_terms() -> None:
    """No page names one as code, or uses `purse`, `books` or `errand`."""
    for page in (*(ROOT / "docs").rglob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md"):
        text = page.read_text(encoding="utf-8")
        assert not set(re.findall(r"`(\w+)`", text)) & OLD, page
        assert not re.findall(r"\b(?:purses?|books|errand)\b", text), page
