from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ondine_core.batching.strategy import STRATEGIES, BatchStrategy
from ondine_core.prompts.output_schema import Invalid
from ondine_core.prompts.template import Prompt
from tests.support.batches import QUESTION, batch, every_strategy, reply_with, task
from tests.support.strategies import TEXTS

# What no notation can carry unchanged is left out: XML knows no control characters, and turns line ends into \\n.
CARRIED = st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="\ufffe\uffff"), max_size=30)
HOSTILE = st.sampled_from(
    [
        *(
            '"},{"id":1,"again":"x"}]',
            "</review></item>",
            "```",
            "\n```\n",
            "id,review\n1,x",
            '{"answers":[]}',
            "[[1]]",
        ),
        *("{review}", "&lt;", "<item id='2'>", "]]>", "\r", "\x00", "\x0b", "\u2028", '""', "null", "\\", "\ufeff"),
    ]
)
ANSWERS = st.fixed_dictionaries(
    {
        "mood": CARRIED.map(str.strip).filter(bool),
        "stars": st.none() | st.integers(0, 5),
        "sure": st.booleans(),
        "score": st.floats(-100, 100),
    }
)


@every_strategy
@given(st.lists(ANSWERS, min_size=1, max_size=6), st.randoms(use_true_random=False))
def test_answers_are_matched_by_id(strategy: BatchStrategy, answers: list[dict[str, Any]], rng: Any) -> None:
    """In any order and with any markup in the answers, each id has its own answer, with its types."""
    numbered = dict(enumerate(answers, 1))
    shuffled = dict(rng.sample(sorted(numbered.items(), key=lambda pair: pair[0]), len(numbered)))
    asked = batch(QUESTION, ["x"] * len(answers))
    found = strategy.decode(asked, reply_with(strategy, shuffled), QUESTION)
    assert found is not None
    assert {number: QUESTION.schema.parse(text) for number, text in found.items()} == numbered


ECHO = task("Say again: {review}", {"again": str})


@every_strategy
@given(texts=st.lists(st.lists(st.text(max_size=9) | HOSTILE, max_size=4).map("".join), min_size=1, max_size=6))
def test_echoed_rows_get_their_own_text(strategy: BatchStrategy, texts: list[str]) -> None:
    """A model that echoes its rows gives each row its own text, whatever characters it has."""
    asked = batch(ECHO, texts)
    form = strategy.encode.args[0]
    read = form.read(strategy.encode(asked, ECHO).messages[-1].content)
    replied = [{"id": record["id"], "again": record["x"]} for record in read]
    found = strategy.decode(asked, reply_with(strategy, {int(one.pop("id")): one for one in replied}), ECHO)
    expected = [in_xml(text) for text in texts] if form.name == "xml" else texts
    assert found == {number: orjson.dumps({"again": text}).decode() for number, text in enumerate(expected, 1)}


def in_xml(text: str) -> str:
    """`text` as far as XML has characters for it."""
    return re.sub("[\x00-\x08\x0b-\x1f\ufffe\uffff]", " ", text.replace("\r\n", "\n").replace("\r", "\n"))


@every_strategy
def test_free_text_and_patterns_work_in_batches(strategy: BatchStrategy) -> None:
    """An output that is not a JSON object is sent in a field of its own."""
    asked = task(Prompt("Sum up {review}", examples=[("long", "short")]), "summary")
    found = strategy.decode(
        batch(asked, ["a", "b"]), reply_with(strategy, {2: {"answer": "B"}, 1: {"answer": "A"}}), asked
    )
    assert found == {1: "A", 2: "B"}


@given(st.lists(TEXTS, min_size=1, max_size=4), st.text(max_size=60))
def test_no_reply_breaks_a_strategy(texts: list[str], reply: str) -> None:
    """For any reply, decoding gives answers for known ids or none."""
    asked = batch(QUESTION, texts)
    for strategy in STRATEGIES.values():
        found = strategy.decode(asked, reply, QUESTION)
        assert found is None or set(found) <= set(range(1, len(texts) + 1))


# -- shapes of replies ---------------------------------------------------------------------------------------------

A, B = {"mood": "a", "stars": 1, "sure": True, "score": 0.5}, {"mood": "b", "stars": None, "sure": False, "score": 1.0}


def answers(text: str, strategy: BatchStrategy, rows: int = 2) -> Mapping[int, Any] | None:
    """The valid answers in a reply, by local id."""
    found = strategy.decode(batch(QUESTION, ["x"] * rows), text, QUESTION)
    parsed = {number: QUESTION.schema.parse(one) for number, one in (found or {}).items()}
    return None if found is None else {number: one for number, one in parsed.items() if not isinstance(one, Invalid)}


def replies_to(strategy: BatchStrategy, *records: Mapping[str, Any]) -> str:
    form = strategy.encode.args[0]
    return f'{{"answers":{form.write(records)}}}' if form.name == "json" else form.write(records)


@every_strategy
@pytest.mark.parametrize(
    ("records", "found"),
    [
        ([{"id": 1, **A}, {"id": 2, **B}], {1: A, 2: B}),
        ([{"id": 2, **B}, {"id": 1, **A}], {1: A, 2: B}),
        ([{"id": "1", **A}, {"id": " 2 ", **B}], {1: A, 2: B}),
        ([{"id": 1, **A}, {"id": 2, **B}, {"id": 1, **A}], {1: A, 2: B}),  # repeated
        ([{"id": 1, **A}, {"id": 2, **B}, {"id": 1, **B}], {2: B}),  # contradicted
        ([{"id": 2, **B}], {2: B}),
        ([{"id": 1, **A}, {"id": 2, **B}, {"id": 3, **B}, {"id": 0, **B}], {1: A, 2: B}),  # an id that was not asked
        ([{"id": 0, **A}, {"id": 1, **B}], None),  # counted from 0: the 1 is not ours
        ([{"id": "2", **A}, {"id": "3", **B}], None),
        ([{"id": 1001, **A}, {"id": 1002, **B}], None),
        ([{"id": "one", **A}, {"id": "1.", **A}, {"id": "", **A}, {"id": "9" * 5000, **A}], {}),
        ([{"id": 1, **A}, {"id": 2, **B, "sure": "perhaps"}], {1: A}),  # one is not valid
        ([{"id": 1, **A}, {"id": 2, "mood": "b"}], {1: A}),
        ([{"number": 1, **A}, {"number": 2, **B}], {}),
    ],
)
def test_answers_are_joined_by_id(
    strategy: BatchStrategy, records: list[dict[str, Any]], found: Mapping[int, Any] | None
) -> None:
    """Whatever a reply repeats, invents, drops or contradicts, a row has the one answer under its id or none."""
    assert answers(replies_to(strategy, *records), strategy) == found


@every_strategy
@pytest.mark.parametrize("fence", ["```\n{}\n```", "```json\n{}\n```\n", "\n\n{}\n"])
def test_a_fence_around_a_reply_is_stripped(strategy: BatchStrategy, fence: str) -> None:
    """A reply in a code fence, or with empty lines around it, is the reply."""
    assert answers(fence.replace("{}", reply_with(strategy, {1: A, 2: B})), strategy) == {1: A, 2: B}


@pytest.mark.parametrize("name", ["json", "xml"])
@pytest.mark.parametrize("prose", ["Sure! Here you are:\n{}", "{}\nIs there anything else?", "```\n{}\n```\nDone."])
def test_prose_around_a_reply_makes_it_unreadable(name: str, prose: str) -> None:
    """No answer is extracted from surrounding prose."""
    assert not answers(prose.replace("{}", reply_with(STRATEGIES[name], {1: A, 2: B})), STRATEGIES[name])


def test_prose_around_json_lines_is_ignored() -> None:
    """In JSON lines a line that is not a record is skipped; before a CSV header no other line is allowed."""
    prose = "Sure, here:\n{}\nIs there anything else?"
    lines, csv = STRATEGIES["jsonl"], STRATEGIES["csv"]
    assert answers(prose.replace("{}", reply_with(lines, {1: A, 2: B})), lines) == {1: A, 2: B}
    assert not answers(prose.replace("{}", reply_with(csv, {1: A, 2: B})), csv)


def test_json_may_come_as_a_bare_list() -> None:
    """The list of answers is accepted without its wrapper."""
    assert answers(json.dumps([{"id": 1, **A}, 7, None, {"id": 2, **B}]), STRATEGIES["json"]) == {1: A, 2: B}


@pytest.mark.parametrize(("value", "text"), [("", ""), (None, ""), (0, "0"), (False, "false"), (["ä"], '["ä"]')])
def test_free_text_value_is_kept_as_json_text(value: Any, text: str) -> None:
    """A value where free text was asked for is the JSON of the reply; an empty one is not a text."""
    asked = task("{review}", "summary")
    found = STRATEGIES["json"].decode(batch(asked, ["a"]), orjson.dumps([{"id": 1, "answer": value}]).decode(), asked)
    assert found == {1: text}


@pytest.mark.parametrize("name", ["csv", "xml"])
def test_texts_are_read_as_their_schema_says(name: str) -> None:
    """In text-only formats the schema distinguishes numbers, booleans, null, lists and choices from texts like them."""
    kinds = {
        "text": "string",
        "maybe": {"type": "string", "nullable": True},
        "flag": "boolean",
        "list": {"type": "array", "items": {"type": "string"}},
        "choice": {"enum": ["1", "yes"]},
        "mixed": {"enum": ["1", 2, None]},
        "size": {"anyOf": [{"type": "integer"}, {"type": "null"}]},
    }
    asked, strategy = task("{review}", kinds), STRATEGIES[name]
    rows = [
        {"text": "null", "maybe": "null", "flag": "True", "list": '["a"]', "choice": "1", "mixed": "1", "size": "7"},
        {"text": "12", "maybe": "", "flag": "false", "list": "[]", "choice": "yes", "mixed": "2", "size": "null"},
        {"text": "true", "maybe": "x", "flag": " TRUE", "list": "[ ]", "choice": "1", "mixed": "", "size": ""},
        {"text": "x", "maybe": "x", "flag": "perhaps", "list": "a, b", "choice": "no", "mixed": "3", "size": "007"},
    ]
    found = strategy.decode(batch(asked, ["x"] * 4), reply_with(strategy, dict(enumerate(rows, 1))), asked)
    parsed = [asked.schema.parse(text) for text in (found or {}).values()]
    assert [list(one.values()) for one in parsed[:3]] == [
        ["null", None, True, ["a"], "1", "1", 7],
        ["12", None, False, [], "yes", 2, None],
        ["true", "x", True, [], "1", None, None],
    ]
    assert isinstance(parsed[3], Invalid)


@every_strategy
def test_lone_surrogates_in_a_reply_are_survived(strategy: BatchStrategy) -> None:
    """They spoil neither the run nor the other answers."""
    broken = reply_with(strategy, {1: A, 2: B}).replace("b", "\ud800")
    assert 1 in (answers(broken, strategy) or {1: A})


def test_answer_nested_too_deeply_is_invalid() -> None:
    """A reply of nothing but brackets fails its own row only."""
    nested = json.dumps({"answers": [{"id": 2, **B}]}).replace("[{", '[{"id":1,"mood":' + "[" * 500 + "]" * 500 + "},{")
    assert answers(nested, STRATEGIES["json"]) == {2: B}
