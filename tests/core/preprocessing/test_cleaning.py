"""Cleaning steps: each does what its name says, to any text, in time linear in the text."""

from __future__ import annotations

import random
import unicodedata
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ondine_core import ConfigError, Options, ScriptedModel, enrich_sync
from ondine_core.preprocessing.cleaning import (
    Truncation,
    collapse_punctuation,
    collapse_whitespace,
    find_steps,
    name_of,
    normalize_unicode,
    strip_control,
    strip_html,
    strip_markdown,
    truncate,
)
from ondine_core.providers.tokenizer import counter
from tests.support.growth import grows_no_faster_than_its_text

COUNT = counter("openai/gpt-4o-mini")
NAMED = ("unicode", "nfkc", "control", "html", "markdown", "whitespace", "punctuation")
STEPS: dict[str, Callable[[str], str]] = dict(zip(NAMED, find_steps(NAMED), strict=True)) | {"truncate": truncate(50)}
TEXTS = st.text(st.characters(), max_size=60) | st.text(
    alphabet="<>&;/!-#*_~`[]()\\ \n\tabp\"'=.?\ud800\u200d\u0301", max_size=60
)


# -- laws ----------------------------------------------------------------------------------------------------------


@given(TEXTS, st.sampled_from(sorted(STEPS.keys() - {"html", "markdown"})))
@example("\u0301" * 100, "unicode")
def test_cleaning_is_idempotent(text: str, name: str) -> None:
    """Clean text is unchanged, so an answer is found again whether or not its text was cleaned before."""
    once = STEPS[name](text)
    assert STEPS[name](once) == once


@given(TEXTS, st.sampled_from(sorted(STEPS)))
def test_any_text_can_be_cleaned(text: str, name: str) -> None:
    """Also with lone surrogates, NUL or half tags, the result is a text."""
    assert isinstance(STEPS[name](text), str)


@given(st.text(alphabet="abc ABC 123 äöü éè 漢字 .,!?-:\n", max_size=80).map(str.strip))
def test_markup_steps_leave_plain_text_unchanged(text: str) -> None:
    """Where there is no markup, nothing is taken for it."""
    assert strip_html(text) == text


# -- characters ----------------------------------------------------------------------------------------------------


def test_unicode_is_normalized() -> None:
    """Composed and decomposed accents become the same, and full-width forms ASCII on request."""
    assert normalize_unicode("e\u0301") == "é" == normalize_unicode("é")
    assert normalize_unicode("ﬁ ① \uff21") == "ﬁ ① \uff21"
    assert normalize_unicode("ﬁ ① \uff21", "NFKC") == "fi 1 A"


@given(st.text(max_size=1500, alphabet=st.characters(exclude_categories=["Cs"])))
def test_long_texts_are_normalized_like_short_ones(text: str) -> None:
    """The guard against texts made of accents changes no other text."""
    padded = "ab " * 400 + text
    assert normalize_unicode(padded) == unicodedata.normalize("NFC", padded)


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("a\x00b\x1bc\x7f\x85d", "abc\nd"),
        ("a\r\nb\rc\u2028d\te", "a\nb\nc\nd\te"),
        ("\ufeffa\u200bb\u00adc\u2060", "abc"),
        ("\u202egnp.exe\u202c \u200fx", "gnp.exe x"),
        ("hi\U000e0068\U000e0069dden", "hidden"),
        ("half \ud83d pair", "half \ufffd pair"),
        ("a\u200db\u200cc", "abc"),
        ("\u0645\u06cc\u200c\u062e", "\u0645\u06cc\u200c\u062e"),
        ("👨\u200d👩\u200d👧 ❤\ufe0f\u200d🔥", "👨\u200d👩\u200d👧 ❤\ufe0f\u200d🔥"),
        ("क्\u200dष", "क्\u200dष"),
    ],
)
def test_invisible_characters_are_removed(text: str, clean: str) -> None:
    """Controls, direction marks and hidden instructions; joiners stay in scripts that need them."""
    assert strip_control(text) == clean


def test_blanks_and_repetitions() -> None:
    """Blanks of all kinds become one space, lines stay lines, and repeated punctuation is reduced."""
    assert collapse_whitespace("  a \t\u00a0b \n\n \n\n c\u3000d \n") == "a b\n\nc d"
    assert (
        collapse_punctuation("wow!!!! ok??, ,,no;; ----- ..... ... :: 100%%%% #####")
        == "wow! ok?, ,no; --- ... ... :: 100%%% ###"
    )


# -- markup --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("<p>Hi <b>Bob</b>,<br/>a&nbsp;b</p><p>c</p>", "Hi Bob,\na b\n\nc"),
        ("<table><tr><td>1</td><td>2</td></tr></table>", "1  2"),
        ("<script>x<y</script>a<STYLE type='b'>c</Style >d<!-- <b> -->e", "ade"),
        ('<a title="a > b" href=\'x>y\'>link</a> <img src="data:' + "A" * 5000 + '">', "link"),
        ("<!DOCTYPE html><html><head><title>T</title></head><body>B</body></html>", "T\n\nB"),
        ("<![if mso]>a<![endif]><?xml version='1.0'?>b", "ab"),
        ("I <3 it, a < b > c, x<y, 1<2", "I <3 it, a < b > c, x<y, 1<2"),
        (
            "<ann@example.com> List<String> <EMAIL_1> <your name>",
            "<ann@example.com> List<String> <EMAIL_1> <your name>",
        ),
        (
            "a &lt;b&gt; &amp;amp; &#65;&#x42; &copy=1 AT&T &unknown; &#0;",
            "a <b> &amp; AB &copy=1 AT&T &unknown; \ufffd",
        ),
        ("use a <script> tag or <b", "use a  tag or <b"),
        ("<p class=it's>a</p> it's", "a\n it's"),
        ("<div\nid=x\n>a</div\n>", "a"),
        ("<!-- never closed <b>bold</b>", "<!-- never closed bold"),
    ],
)
def test_html_becomes_text(text: str, clean: str) -> None:
    """Tags are removed, blocks break lines, entities are decoded once, and text that only looks like a tag stays."""
    assert strip_html(text) == clean


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("# Title\n## Sub\nText", "Title\nSub\nText"),
        ("Title\n=====\nText\n\n---\nmore", "Title\nText\n\n\nmore"),
        ("**bold** and *em*, __bold__ and _em_, ***both***, ~~gone~~", "bold and em, bold and em, both, gone"),
        ("**bold *and em* in it**", "bold and em in it"),
        (
            "snake_case_name, 2 * 3 * 4, a*b*c, f(**kwargs), 5 _ 6",
            "snake_case_name, 2 * 3 * 4, a*b*c, f(**kwargs), 5 _ 6",
        ),
        ('[text](https://x.y/(z) "t") ![alt](p.png) [![a](b)](c) <https://x.y>', "text alt a https://x.y"),
        ("m[i][j], f(x)[0](1), [1] and [ ] stay", "m[i][j], f(x)[0](1), [1] and [ ] stay"),
        ("use `code` here\n```python\nx = 1\n```\nend", "use code here\nx = 1\nend"),
        ("> quoted\n> > twice\n- item\n1. first", "quoted\ntwice\n- item\n1. first"),
        (r"\*literal\* \# not a title", "*literal* # not a title"),
    ],
)
def test_markdown_becomes_text(text: str, clean: str) -> None:
    """Marks are removed, words and lines stay, and code and arithmetic are not read as emphasis."""
    assert strip_markdown(text) == clean


# -- truncation ----------------------------------------------------------------------------------------------------

SENTENCES = "The kettle boils fast. It looks great! Does it last? I hope so. " * 20


@given(TEXTS | st.text(max_size=3000), st.integers(8, 40))
@example("a" * 3000, 8)
@example("word " * 500, 8)
@example("\u0301" * 1000, 9)
def test_a_truncated_text_fits(text: str, most: int) -> None:
    """It has at most the given tokens, begins like the text and is marked as cut; a text that fits is unchanged."""
    cut = truncate(most)(text)
    assert COUNT(cut) <= most
    if cut == text:
        return
    assert COUNT(text) > most
    assert cut.endswith(" […]")
    assert text.startswith(cut.removesuffix(" […]"))


def test_a_text_is_cut_at_the_end_of_a_sentence() -> None:
    """Or of a word, if the sentence would cost half of the available tokens."""
    assert truncate(25)(SENTENCES).removesuffix(" […]").endswith(("fast.", "great!", "last?", "so."))
    assert truncate(20)("One sentence. " + "and another one without an end " * 20).endswith("another one without […]")
    assert truncate(20)("これは文です。" * 20).endswith("。 […]")
    assert truncate(15)("first line\nsecond line without a stop\nthird\n" * 9).count("\n") >= 1
    assert truncate(12, mark="")(SENTENCES) == "The kettle boils fast. It looks great!"


def test_a_megabyte_is_cut_without_counting_all_of_it() -> None:
    """Only about as much as fits is tokenized."""
    grows_no_faster_than_its_text(truncate(100), "no end in sight ")
    assert len(truncate(100)("a" * 1_000_000)) < 1_000
    assert len(truncate(100)("漢" * 1_000_000)) < 1_000


# -- time ----------------------------------------------------------------------------------------------------------

_UNITS = (
    *"<>&\"'=!-#*_~`[]()\\ \n\t.a1/@;:|{}",
    *(
        "<a",
        "<a ",
        "<a b=",
        "<a b='",
        '<a b="',
        "<!--",
        "<!",
        "<![if",
        "<![",
        "<script>",
        "</script",
        "<p>",
        "&amp;",
        "&#",
    ),
    *(
        "**",
        "*a",
        "*a ",
        "_a",
        "_a ",
        "~~a",
        "[a](",
        "[a]",
        "](",
        "`a",
        "```\n",
        "# ",
        "#\n",
        "> ",
        "---\n",
        "--- ",
        "- ",
    ),
    *(
        "* * * ",
        "=\n",
        "<http:",
        "\\*",
        "a\u0301",
        "\u0301\u0316",
        "\u0315\u0316",
        "\ud800",
        "\u200d",
        "é",
        "漢",
        "\u00a0",
    ),
    *("?!", "!!", ". ", "...", "。", "= ", "<a =\"'", "[a](b(", "\r", "\r\n"),
)


@pytest.mark.parametrize("name", sorted(STEPS))
def test_cleaning_takes_linear_time(name: str) -> None:
    """Twice the text takes about twice as long; the standard library's HTML parser would take hours."""
    rng = random.Random(3)
    pieces = ["<a", "<b", " ", "=", '"', "'", ">", "<", "/", "\n", "*", "_", "[", "]", "(", ")", "&"]
    mixed = ["".join(rng.choice(pieces) for _ in range(rng.randrange(2, 9))) for _ in range(40)]
    for unit in (*_UNITS, *mixed):
        grows_no_faster_than_its_text(STEPS[name], unit)


# -- settings ------------------------------------------------------------------------------------------------------


def test_steps_are_names_functions_and_values() -> None:
    """All forms that a user may write are equivalent, and have a readable name."""
    assert find_steps("html") == find_steps(["html"]) == (strip_html,)
    assert find_steps([{"truncate": 9}]) == find_steps([{"truncate": {"max_tokens": 9}}]) == (Truncation(9),)
    assert find_steps(strip_html) == (strip_html,)
    assert [name_of(step) for step in find_steps(["nfkc", strip_html, {"truncate": 9}, str.lower])] == [
        "nfkc",
        "html",
        "truncate(9, openai/gpt-4o-mini, ' […]')",
        "str.lower",
    ]


@pytest.mark.parametrize(
    ("clean", "message"),
    [
        (["htm"], "There is no cleaning step 'htm'; valid are 'unicode', 'nfkc'"),
        ([7], "There is no cleaning step 7"),
        (7, "clean=7; give a list of steps"),
        ([{"truncate": 5}], "max_tokens=5 must be a whole number with room for the mark"),
        ([{"truncate": "5"}], "max_tokens='5' must be a whole number"),
        ([{"truncate": {"tokens": 5}}], "truncate takes max_tokens, model and mark"),
        ([{"truncate": 9, "html": True}], "There is no cleaning step {'truncate': 9, 'html': True}"),
    ],
)
def test_invalid_steps_are_refused_when_declared(clean: Any, message: str) -> None:
    """The message says what is valid."""
    with pytest.raises(ConfigError) as raised:
        find_steps(clean)
    assert message in str(raised.value)


# -- whole runs ----------------------------------------------------------------------------------------------------


def echo(prompt: str) -> dict[str, str]:
    return {"echo": prompt.removeprefix("Repeat: ")}


def test_rows_are_asked_after_cleaning() -> None:
    """Steps apply in order, rows equal after cleaning are asked once, and non-texts are unchanged or not asked."""
    model = ScriptedModel(echo)
    table = {"text": ["<b>Hot</b>!!!", "Hot!", 7, None, "x" * 200]}
    report = enrich_sync(
        table,
        prompt="Repeat: {text}",
        output={"echo": str},
        model=model,
        clean=["html", "punctuation", str.lower, truncate(20)],
    )
    assert report.column("echo")[:4] == ["hot!", "hot!", "7", None]
    assert report.column("echo")[4].endswith("x […]")
    assert len(model.calls) == 3
    assert report.preprocess_stats is not None
    assert report.preprocess_stats.rows_truncated == 1


def test_changed_steps_ask_only_rows_whose_text_changed(tmp_path: Any) -> None:
    """The steps are not part of an answer's key, the cleaned text is."""
    table = {"text": ["plain", "<b>bold</b>"]}
    calls = []
    for clean in ([], ["html"], ["html", "whitespace"]):
        model = ScriptedModel(echo)
        chosen = Options(store=tmp_path / "answers.db")
        enrich_sync(table, prompt="Repeat: {text}", output={"echo": str}, model=model, clean=clean, options=chosen)
        calls.append(len(model.calls))
    assert calls == [2, 1, 0]


def test_a_step_that_fails_fails_its_row_only() -> None:
    """If a user's function raises or returns no text, the other rows are answered, and no row text is shown."""

    def fussy(text: str) -> Any:
        if "secret" in text:
            raise ValueError(text)
        return None if "none" in text else text

    table = {"text": ["a secret", "b", "none"]}
    report = enrich_sync(table, prompt="Repeat: {text}", output={"echo": str}, model=ScriptedModel(echo), clean=[fussy])
    assert report.column("echo") == [None, "b", None]
    assert report.failures == {
        "prompt: the row cannot be cleaned (ValueError)": 1,
        "prompt: the row cannot be cleaned (TypeError)": 1,
    }
