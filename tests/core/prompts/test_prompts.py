from __future__ import annotations

import datetime as dt
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from jinja2.exceptions import SecurityError, UndefinedError

from ondine_core import Answer, Failure, ScriptedModel, enrich_sync
from ondine_core.errors import ConfigError
from ondine_core.prompts.output_schema import compile_schema
from ondine_core.prompts.template import CompiledPrompt, Prompt, compile_prompt
from ondine_core.types.values import Message
from tests.support.strategies import TEMPLATE_LIKE, TEXTS

LABEL = compile_schema({"label": str})


def compiled(prompt: str | Prompt) -> CompiledPrompt:
    return compile_prompt(prompt, LABEL.dump)


def jinja(text: str) -> CompiledPrompt:
    return compiled(Prompt(text, syntax="jinja2"))


# -- braces --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("template", "columns", "text"),
    [
        ("Review: {review}", ("review",), "Review: A"),
        ("{b} {review} {b}", ("b", "review"), "B A B"),
        ("{first name}", ("first name",), "C"),
        ('{{"label": ...}} {review}', ("review",), '{"label": ...} A'),
        ("{{{review}}}", ("review",), "{A}"),
        ("{0}", ("0",), "D"),
        ("100% of {review}\n$x \\n", ("review",), "100% of A\n$x \\n"),
        ("{größe}", ("größe",), "E"),
    ],
)
def test_braces_name_columns(template: str, columns: tuple[str, ...], text: str) -> None:
    """A name in braces is a column, in order of first use; doubled braces are literal, and nothing else is special."""
    prompt = compiled(template)
    assert (prompt.source, prompt.syntax, prompt.columns) == (template, "braces", columns)
    assert prompt.render({"review": "A", "b": "B", "first name": "C", "0": "D", "größe": "E"}) == text


@pytest.mark.parametrize(
    "template",
    ["{a!r}", "{a:>3}", "{a:images}", "{a!r:>3}", "{a.b}", "{a[0]}", "{}", "{ }", '{"label": "x"}', "{a.__class__}"],
)
def test_braces_hold_names_only(template: str) -> None:
    """Attributes, indices, conversions, formats and pasted JSON are refused as they are written, with both fixes."""
    with pytest.raises(ConfigError) as caught:
        compiled(f"{template} {{a}}")
    assert f"The prompt has {template} where a column name was expected, as in {{review}}, {{photo:image}}" in str(
        caught.value
    )
    assert "Double literal braces, {{ }}, or use Prompt(..., syntax='jinja2')" in str(caught.value)


@pytest.mark.parametrize("template", ["{a", "a}", "{a} {", "{a{b}}"])
def test_unbalanced_braces_are_refused(template: str) -> None:
    """The message says how to write a literal brace."""
    with pytest.raises(ConfigError, match=r"double literal braces, \{\{ \}\}|Double literal braces, \{\{ \}\}"):
        compiled(template)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, ""),
        (float("nan"), ""),
        ("None", "None"),
        ("nan", "nan"),
        (0, "0"),
        (False, "False"),
        (1.5, "1.5"),
        (7.0, "7.0"),  # with another text, answers that are stored would be paid again
        ({"k": "é"}, '{"k": "é"}'),
        ([1, None], "[1, null]"),
        ((1, ("x", None)), '[1, ["x", null]]'),
        ({"b", "a"}, '["a", "b"]'),
        (frozenset({2, "2", None}), '[null, 2, "2"]'),
        ({"k": [({"b", "a"},), frozenset()]}, '{"k": [[["a", "b"]], []]}'),
        (dt.date(2026, 1, 2), "2026-01-02"),
        (b"<X object at 0x1f>", "<X object at 0x1f>"),
        ("Grüße".encode(), "Grüße"),
        (memoryview(b"abc"), "abc"),
        ([b"abc", bytearray(b"d")], '["abc", "d"]'),
        (b"", ""),
        (["<X object at 0x1f>"], '["<X object at 0x1f>"]'),
    ],
)
def test_text_of_values(value: Any, text: str) -> None:
    """A missing value is empty, a text is unchanged, and a nested value is JSON."""
    assert compiled("[{a}]").render({"a": value}) == f"[{text}]"


RENDERING = """
from ondine_core.prompts.template import Prompt, compile_prompt
tags = {f"tag {number}" for number in range(50)}
row = {"a": tags, "b": [{"k": frozenset(tags)}, (tags, {frozenset("xyz"), None, 1})]}
for text, syntax in (
    ("{a} {b}", "braces"),
    ("{{ a }} {{ b }} {% for tag in a %}{{ tag }}{% endfor %} {{ a|join }} {{ b[1][0] }}", "jinja2"),
):
    print(compile_prompt(Prompt(text, syntax=syntax), str).render(row))
"""


def test_a_set_is_the_same_text_in_every_process() -> None:
    """Its elements are sorted at any depth, so no later run pays for them again."""
    texts = {
        subprocess.run(
            [sys.executable, "-c", RENDERING],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(texts) == 1
    assert b'["tag 0", "tag 1", "tag 10"' in texts.pop()


class Opaque:
    """Has no text but its memory address."""


@dataclass
class Holder:
    """Writes the value it holds."""

    inner: Any


@pytest.mark.parametrize("render", [compiled("{a}").render, jinja("{{ a }}").render], ids=["braces", "jinja2"])
@pytest.mark.parametrize(
    ("value", "name"),
    [
        (Opaque(), "Opaque"),
        ([1, Opaque()], "Opaque"),
        ({"k": (Opaque(),)}, "Opaque"),
        ({Opaque()}, "Opaque"),
        (Holder(Opaque()), "Holder"),
        (jinja, "function"),
    ],
    ids=["object", "list", "mapping", "set", "dataclass", "function"],
)
def test_a_value_without_a_text_is_refused(render: Callable[[Any], str], value: Any, name: str) -> None:
    """A memory address differs in every run, which would pay for the row again; the error names the type only."""
    with pytest.raises(TypeError, match=f"a value of type '{name}' has no text but its address") as caught:
        render({"a": value})
    assert "0x" not in str(caught.value)


def test_a_row_without_a_text_fails_alone() -> None:
    """It is not asked, other rows are; the failure names the type, not the content."""
    rows = [{"a": "x"}, {"a": Opaque()}, {"a": {"z", "y"}}]
    report = enrich_sync(rows, prompt="{a}", output="b", model=ScriptedModel({"": "ok"}))
    first, second, third = report.outcomes
    assert isinstance(second, Failure)
    why = "a value of type 'Opaque' has no text but its address; give the type a __str__"
    assert second == Failure("prompt", f"the template cannot be filled from this row: {why}")
    assert isinstance(first, Answer)
    assert isinstance(third, Answer)


@pytest.mark.parametrize("sanitize", [None, "redact"])
@pytest.mark.parametrize("clean", [[], ["whitespace"]])
@pytest.mark.parametrize("prompt", ["{a}", Prompt("{{ a }}", syntax="jinja2")], ids=["braces", "jinja2"])
def test_bytes_are_a_text_in_utf_8_or_fail_their_row(prompt: Any, clean: list[str], sanitize: Any) -> None:
    """As in a binary column of Parquet; a file or a text in another encoding is not asked about as a Python literal."""
    model = ScriptedModel({"": "ok"})
    rows = [{"a": "ä ann@example.com".encode()}, {"a": "ann@example.com".encode("utf-16")}]
    first, second = enrich_sync(rows, prompt=prompt, output="b", model=model, clean=clean, sanitize=sanitize).outcomes
    assert isinstance(first, Answer)
    assert model.calls[0].messages[-1].content == ("ä [EMAIL]" if sanitize else "ä ann@example.com")
    assert isinstance(second, Failure)
    assert "its bytes are no text in UTF-8" in second.detail


def test_jinja2_can_write_an_attribute_of_a_value_without_text() -> None:
    """A value that contains no set is passed unchanged."""
    row = {"a": Holder(Opaque()), "b": Holder("x")}
    assert jinja("{{ b.inner }}{% if a.inner %}!{% endif %}").render(row) == "x!"


@given(TEMPLATE_LIKE, TEMPLATE_LIKE)
@example("{b}", "{a}")
def test_row_text_is_never_evaluated_by_braces(a: str, b: str) -> None:
    """For any two texts `{a}|{b}` contains both verbatim."""
    assert compiled("{a}|{b}").render({"a": a, "b": b}) == f"{a}|{b}"


@given(TEMPLATE_LIKE, TEMPLATE_LIKE)
@example("{{ b }}", "{% raw %}")
def test_row_text_is_never_evaluated_by_jinja2(a: str, b: str) -> None:
    """For any two texts `{{ a }}|{{ b }}` contains both verbatim, unescaped."""
    assert jinja("{{ a }}|{{ b }}").render({"a": a, "b": b}) == f"{a}|{b}"


@given(TEXTS)
def test_text_with_doubled_braces_is_literal(text: str) -> None:
    """For any text."""
    literal = text.replace("{", "{{").replace("}", "}}")
    assert compiled(literal + "{a}").render({"a": ""}) == text


# -- Jinja2 --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("template", "columns", "text"),
    [
        ("{{ a }} {{ b|upper }}", ("a", "b"), "x<y> B"),
        ("{% if b %}{{ a }}{% endif %}", ("b", "a"), "x<y>"),
        ("{% for c in a %}{{ c }}{{ loop.index }}{% endfor %}", ("a",), "x1<2y3>4"),
        ("{% set t = a %}{{ t }}", ("a",), "x<y>"),
        ("{a} {{ b }}", ("b",), "{a} b"),
        ("{# {{ z }} #}{{ a }}", ("a",), "x<y>"),
    ],
)
def test_jinja2_names_columns(template: str, columns: tuple[str, ...], text: str) -> None:
    """The free names of a template are its columns, known before any row; nothing is escaped for HTML."""
    prompt = jinja(template)
    assert (prompt.syntax, set(prompt.columns)) == ("jinja2", set(columns))
    assert prompt.render({"a": "x<y>", "b": "b"}) == text


@pytest.mark.parametrize(
    ("template", "line"), [("{{ a", 1), ("x\n{% if a %}", 2), ("{{ a|nosuch }}", 1), ("{{ a is nosuch }}", 1)]
)
def test_jinja2_that_does_not_parse_is_refused(template: str, line: int) -> None:
    """Syntax errors and unknown filters and tests are errors of the definition, with their line."""
    with pytest.raises(ConfigError, match=rf"The Jinja2 prompt does not parse, line {line}: "):
        jinja(template)


@pytest.mark.parametrize(
    "template",
    [
        "{{ a.__class__ }}",
        "{{ a['__class__'] }}",
        "{{ a|attr('__class__') }}",
        "{{ a.__class__.__mro__[1].__subclasses__() }}",
        "{{ '{0.__class__}'.format(a) }}",
        "{{ a.format.__globals__ }}",
        "{{ cycler.__init__.__globals__ }}{{ a }}",
        "{{ self.__init__ }}{{ a }}",
    ],
)
def test_jinja2_is_sandboxed(template: str) -> None:
    """No template reaches an underscore attribute, and so none reaches Python's internals."""
    with pytest.raises(SecurityError):
        jinja(template).render({"a": "x"})


def test_jinja2_cannot_change_a_value() -> None:
    """A template cannot modify the row."""
    row = {"a": [1]}
    with pytest.raises(SecurityError):
        jinja("{{ a.append(2) }}").render(row)
    assert row == {"a": [1]}


def test_jinja2_missing_attribute_fails_the_row() -> None:
    """A misspelt attribute does not write an empty text."""
    with pytest.raises(UndefinedError, match="nosuch"):
        jinja("{{ a.nosuch }}").render({"a": {"k": 1}})


# -- where the template comes from ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "syntax", "given"),
    [
        ("p.md", "braces", None),
        ("p.txt", "braces", None),
        ("p.md.j2", "jinja2", None),
        ("p.jinja", "jinja2", None),
        ("p.jinja2", "jinja2", None),
        ("p.j2", "braces", "braces"),
        ("p.md", "jinja2", "jinja2"),
    ],
)
def test_file_name_decides_the_syntax(tmp_path: Path, name: str, syntax: str, given: Any) -> None:
    """`.j2` and `.jinja` are Jinja2, everything else braces, unless `syntax` is given."""
    braces = "Größe: {a}\n"
    file = tmp_path / name
    file.write_text(braces if syntax == "braces" else "Größe: {{ a }}\n", encoding="utf-8")
    prompt = compiled(Prompt(file=file, syntax=given))
    assert (prompt.syntax, prompt.columns) == (syntax, ("a",))
    assert prompt.render({"a": "x"}) == "Größe: x"
    assert compiled(Prompt(file=str(file), syntax=given)) == prompt


def test_byte_order_mark_of_a_file_is_no_part_of_the_prompt(tmp_path: Path) -> None:
    """Editors on Windows write one."""
    file = tmp_path / "prompt.md"
    file.write_text("Ask {a}", encoding="utf-8-sig")
    assert compiled(Prompt(file=file)).render({"a": "x"}) == "Ask x"


def test_jinja2_has_no_filter_that_is_another_in_each_run() -> None:
    """Its rows would be asked and paid again by each run."""
    with pytest.raises(ConfigError, match="No filter named 'random'"):
        jinja("{{ [a, 'b']|random }}")


@pytest.mark.parametrize(
    "prompt",
    [
        Prompt("{a}", system="A {b} shop"),
        Prompt("{a}", system="A {a} shop"),
        Prompt("{a}", system="A {{{a}}} shop"),
        Prompt("{a}", system="A {a:image} shop"),
        Prompt("{{ a }}", system="A {{ a }}", syntax="jinja2"),
        Prompt("{{ a }}", system="A {{b|upper}}", syntax="jinja2"),
    ],
)
def test_placeholder_in_the_system_message_is_an_error(prompt: Prompt) -> None:
    """It would be sent as it stands; other braces may."""
    with pytest.raises(ConfigError, match=r"The system message has \{+ ?[ab][^}]*\}+, but it is the same"):
        enrich_sync({"a": ["x"], "b": ["y"]}, prompt=prompt, output="c", model=ScriptedModel({"": "ok"}))
    other = replace(prompt, system='Answer {"c": "..."}, {d}, {{ d }}, {} or [0-9]{3}.')
    table = {"a": ["x"], "b": ["y"], "3": ["z"], "": ["w"]}
    report = enrich_sync(table, prompt=other, output="c", model=ScriptedModel({"": "ok"}))
    assert report.column("c") == ["ok"]


def test_placeholder_in_the_system_message_can_be_written_literally() -> None:
    """Its braces are doubled, as in the prompt; Jinja2 has single ones for text."""
    system = "Keep {{a}} and {{a:image}}, explain {{{{a}}}}; {{d}}, {{b}} and {{[0-9]{3}}} stay."
    written = "Keep {a} and {a:image}, explain {{a}}; {{d}}, {{b}} and {{[0-9]{3}}} stay."
    assert compiled(Prompt("{a}", system=system)).head == (Message("system", written),)
    by_jinja = Prompt("{{ a }}", system="Keep {a}, {b}.", syntax="jinja2")
    assert compiled(by_jinja).head == (Message("system", "Keep {a}, {b}."),)
    for prompt in (Prompt("{a}", system=system), by_jinja):
        report = enrich_sync({"a": ["x"], "b": ["y"]}, prompt=prompt, output="c", model=ScriptedModel({"": "ok"}))
        assert report.column("c") == ["ok"]


@pytest.mark.parametrize("content", [None, b"\xff\xfe\x00"])
def test_unreadable_file_is_an_error(tmp_path: Path, content: bytes | None) -> None:
    """A missing file and one that is not UTF-8 are configuration errors that name the file."""
    file = tmp_path / "prompt.md"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigError, match="Cannot read the prompt file") as caught:
        compiled(Prompt(file=file))
    assert repr(str(file)) in str(caught.value)


@pytest.mark.parametrize(
    ("prompt", "fix"),
    [
        (Prompt(), "exactly one of text= and file="),
        (Prompt("{a}", file="p.md"), "exactly one of text= and file="),
        (Prompt("{a}", syntax="mako"), "'mako'; valid are 'braces' and 'jinja2'"),  # type: ignore[arg-type]
        (Prompt(""), "write the question, with {column}"),
        (Prompt(" \n"), "write the question, with {column}"),
        (Prompt("What is it?"), "reads no column, so every row would get the same answer; write {column}"),
        (Prompt("{{a}}"), "reads no column"),
        (Prompt("{{ 1 + 1 }}", syntax="jinja2"), "reads no column"),
        (Prompt("{a}", examples=[3]), "Example 1 is not a pair (input, answer)"),  # type: ignore[list-item]
        (Prompt("{a}", examples=[("x", "y"), ("x",)]), "Example 2 is not a pair (input, answer)"),  # type: ignore[list-item]
        (Prompt("{a}{b c}", examples=[("x", "y")]), "reads 'a', 'b c'; write it as a mapping"),
        (Prompt("{a}{b}", examples=[({"b": 1, "c": 2}, "y")]), "lacks 'a', which the prompt reads; it has 'b', 'c'"),
        (Prompt("{a}", examples=[({}, "y")]), "lacks 'a', which the prompt reads; it has nothing"),
        (Prompt("{a}", examples=[("x", {"label": 3})]), "answer of example 1 does not fit the output: label: "),
        (
            Prompt("{a}", examples=[("x", {"lable": "y"})]),
            "example 1 does not fit the output: 'lable' is not an output column",
        ),
    ],
)
def test_invalid_prompt_is_refused_with_the_fix(prompt: Prompt, fix: str) -> None:
    """Before a row is read."""
    with pytest.raises(ConfigError) as caught:
        compiled(prompt)
    assert fix in str(caught.value)


# -- system and examples -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "quoted"),
    [
        ("Rate {{ text }}!", "{{ text }}"),
        ("Rate {title}: {{ text }}", "{{ text }}"),
        ("Rate {title}: {{ text | upper }}", "{{ text | upper }}"),
        ("Rate {title}{% if text %}!{% endif %}", "{% if text %}"),
    ],
)
def test_jinja2_without_its_syntax_is_refused(text: str, quoted: str) -> None:
    """Otherwise it would be sent literally, with braces in place of every row's text."""
    with pytest.raises(ConfigError, match=re.escape(f"The prompt has {quoted}, which is Jinja2")) as caught:
        compile_prompt(text, str)
    assert "syntax='jinja2'" in str(caught.value)
    with pytest.raises(ConfigError, match=r"reads no column: \{\{text\}\} .* syntax='jinja2'"):
        compile_prompt("Rate {{text}}!", str)


@pytest.mark.parametrize("text", ['Reply {{"label": "x"}} for {a}', "{{a}} {a}", "{{ }} {a}", "{{ 'x': 1 }} {a}"])
def test_literal_braces_are_no_jinja2(text: str) -> None:
    """JSON in a prompt and doubled braces around a word stay literal."""
    assert compiled(text).columns == ("a",)


@pytest.mark.parametrize("given_", ["good", {"a": "good"}, {"a": "good", "unread": 1}])
@pytest.mark.parametrize("answer", ["pos", {"label": "pos"}])
def test_examples_come_in_two_forms(given_: Any, answer: Any) -> None:
    """A single column and a single output may be given as plain values; the messages are the same."""
    prompt = compiled(Prompt("Rate {a}!", system="Be brief.", examples=[(given_, answer)]))
    assert prompt.head == (
        Message("system", "Be brief."),
        Message("user", "Rate good!"),
        Message("assistant", '{"label": "pos"}'),
    )


def test_examples_keep_their_order() -> None:
    """Examples precede the row in the order given; without a system message there is none."""
    prompt = compiled(Prompt("{{ a }}", syntax="jinja2", examples=[("1", "x"), ("2", "y")]))
    assert [message.content for message in prompt.head] == ["1", '{"label": "x"}', "2", '{"label": "y"}']
    assert [message.role for message in prompt.head] == ["user", "assistant"] * 2


def test_arrays_in_cells_are_written_in_full() -> None:
    """A NumPy array, as pandas reads from Parquet, is written as a list."""
    render = compiled("{a}").render
    assert render({"a": np.arange(2000)}) == str(list(range(2000)))


@pytest.mark.parametrize(
    ("prompt", "fix"),
    [
        (Prompt("{a}", examples=[(3, "p")]), "input of example 1 is a int"),
        (Prompt("{a}", examples=["ab"]), "Example 1 is not a pair"),
        (Prompt("{{ 1 / a }}", syntax="jinja2", examples=[({"a": 0}, "p")]), "cannot be filled from example 1"),
        (Prompt('{{ a }}{% include "x" %}', syntax="jinja2"), "write it all in one"),
    ],
)
def test_invalid_examples_and_includes_are_refused(prompt: Prompt, fix: str) -> None:
    """When the prompt is defined, not at every row."""
    with pytest.raises(ConfigError, match=fix):
        compile_prompt(prompt, str)


def test_missing_value_is_empty_in_jinja2() -> None:
    """Not the word `None`."""
    assert compiled(Prompt("<{{ a }}>", syntax="jinja2")).render({"a": None}) == "<>"


@pytest.mark.parametrize(
    ("given_", "message"),
    [
        ({"text": 5}, "text=5 of a prompt is a int; give a text, or None"),
        ({"text": "{x}", "system": 5}, "system=5 of a prompt is a int; give a text, or None"),
        ({"file": 5}, "file=5 of a prompt is a int; give a path, or None"),
        ({"text": "{x}", "examples": 5}, "examples of a prompt is a int; give a list of pairs (input, answer)"),
        ({"text": "{x}", "examples": None}, "examples of a prompt is a NoneType; give a list of pairs (input, answer)"),
        ({"text": "{x}", "examples": "ab"}, "examples of a prompt is a str; give a list of pairs (input, answer)"),
        (
            {"text": "{x}", "examples": {"a": "b"}},
            "examples of a prompt is a dict; give a list of pairs (input, answer)",
        ),
    ],
)
def test_prompt_arguments_of_wrong_types_are_refused(given_: dict[str, Any], message: str) -> None:
    """The error has the argument, its value and what is valid."""
    with pytest.raises(ConfigError) as caught:
        Prompt(**given_)
    assert message in str(caught.value)


@pytest.mark.parametrize("prompt", [5, None, b"{x}"])
def test_object_that_is_no_prompt_is_refused(prompt: Any) -> None:
    """Anything but a text or a `Prompt` is an error that shows it."""
    with pytest.raises(ConfigError, match="is not understood; give a template, or a Prompt") as caught:
        compiled(prompt)
    assert f"prompt={prompt!r}" in str(caught.value)
