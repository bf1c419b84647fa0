import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ondine_core.batching.strategy import ONE_PER_CALL, BatchStrategy
from ondine_core.engine.outcomes import Outcomes, pack_answer
from ondine_core.engine.steps import ParsedReply, dedup, judge, render
from ondine_core.errors import ConfigError
from ondine_core.prompts.output_schema import Output, compile_schema
from ondine_core.prompts.task import Task, cache_key
from ondine_core.prompts.template import Prompt, compile_prompt
from ondine_core.types.values import Answer, Batch, Failure, Item, Key, ModelSpec, Reply
from tests.support.strategies import TEXTS

SPEC = ModelSpec("openai/gpt-4o-mini")


def task(prompt: str | Prompt = "{a}", output: Output = "out", spec: ModelSpec = SPEC, **settings: Any) -> Task:
    schema = compile_schema(output)
    return Task(compile_prompt(prompt, schema.dump), schema, replace(spec, **settings))


# -- cache key -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "text", "key"),
    [
        (task(), "Is it good?", "50590d4f9b90a31bb0b1dfc05239b315"),
        (
            task(
                Prompt("{a}", system="Be brief.", examples=[("x", "pos")]),
                {"label": {"type": "string", "enum": ["pos", "neg"]}},
                base_url="http://127.0.0.1:8000/v1",
                temperature=0.5,
                params={"top_p": 0.9, "seed": 7},
            ),
            "Größe? 🙂",
            "9f1a33ba1685f5c77bbab6c15fd1ea4c",
        ),
    ],
)
def test_keys_never_change(asked: Task, text: str, key: str) -> None:
    """A known question has its known key; a changed key would pay for every stored answer again."""
    assert cache_key(asked)(text).hex() == key


@given(TEXTS, TEXTS)
def test_same_text_same_key(one: str, other: str) -> None:
    """Two rows share a key if and only if their texts are equal, in every process."""
    key = cache_key(task())
    assert (key(one) == key(other)) == (one == other)
    assert key(one) == cache_key(task())(one)
    assert len(key(one)) == 16


EXAMPLE = Prompt("{a}", examples=[("x", "y")])
DIFFERENT = {
    "plain": task(),
    "model": task(model="openai/gpt-4o"),
    "base_url": task(base_url="http://127.0.0.1:8000/v1"),
    "other base_url": task(base_url="http://127.0.0.1:8001/v1"),
    "temperature": task(temperature=0.0),
    "other temperature": task(temperature=0.5),
    "params": task(params={"seed": 1}),
    "other params": task(params={"seed": 2}),
    "schema": task(output={"out": str}),
    "column": task(output="other"),
    "pattern": task(output=re.compile("(?P<out>x)")),
    "description": task(output={"out": {"type": "string", "description": "d"}}),
    "system": task(Prompt("{a}", system="s")),
    "other system": task(Prompt("{a}", system="s ")),
    "example": task(EXAMPLE),
    "example's input": task(Prompt("{a}", examples=[("x ", "y")])),
    "example's answer": task(Prompt("{a}", examples=[("x", "z")])),
    "examples": task(Prompt("{a}", examples=[("x", "y"), ("x", "y")])),
    "system and example": task(Prompt("{a}", system="s", examples=[("x", "y")])),
    "rendered example": task(Prompt("Q: {a}", examples=[("x", "y")])),
}


def test_every_part_of_the_question_changes_the_key() -> None:
    """Model, server, sampling, schema, system message and every example are part of the key."""
    keys = {name: cache_key(asked)("text") for name, asked in DIFFERENT.items()}
    assert len(set(keys.values())) == len(keys), keys


@pytest.mark.parametrize(
    "settings",
    [
        {"max_output_tokens": 99},
        {"timeout_s": 1.5},
        {"api_key": "secret"},
        {"params": {}},
        {"params": {"a": {"x": 1, "y": 2}, "b": 1}},
        {"params": {"b": 1, "a": {"y": 2, "x": 1}}},
    ],
    ids=str,
)
def test_settings_that_do_not_affect_answers_are_not_in_the_key(settings: Mapping[str, Any]) -> None:
    """Bounds, time-outs, API keys and the order of parameters may change without asking anything again."""
    expected = task(params={"a": {"x": 1, "y": 2}, "b": 1}) if settings.get("params") else task()
    assert cache_key(task(**settings))("text") == cache_key(expected)("text")


@given(st.lists(TEXTS.filter(str.strip), min_size=2, max_size=2), TEXTS)
def test_key_separates_the_parts_of_a_question(parts: list[str], text: str) -> None:
    """Text moved from one part of a question to the next gives another key."""
    system, addition = parts
    one = task(Prompt("{a}", system=system + addition))
    other = task(Prompt("{a}", system=system))
    assert cache_key(one)(text) != cache_key(other)(addition + text)


@pytest.mark.parametrize("value", [{1}, object(), {1: "x"}], ids=["set", "object", "number as name"])
def test_parameters_that_are_not_json_are_refused(value: Any) -> None:
    """They could not be sent and have no key; the message names the setting."""
    with pytest.raises(ConfigError, match=r"params=.* cannot be written as JSON"):
        cache_key(task(params={"p": value}))


# -- render and dedup ----------------------------------------------------------------------------------------------


def test_render_is_lazy_and_by_index() -> None:
    """Rows are rendered on demand, in the order asked for, from the columns that the prompt reads."""
    texts = render(task("{a}-{b c}").prompt, {"a": [1, 2, 3], "b c": "xyz"}, iter([2, 0]), on_missing="ask")
    assert next(texts) == "3-z"
    assert list(texts) == ["1-x"]


def test_row_that_cannot_be_rendered_fails_alone() -> None:
    """A template error for one value fails that row, without quoting the value, and the next is rendered."""
    prompt = compile_prompt(Prompt("{{ 6 // a }}", syntax="jinja2"), str)
    one, two, three = render(prompt, {"a": [1, "secret", 2]}, range(3), on_missing="ask")
    assert (one, three) == ("6", "3")
    assert two == Failure("prompt", "the template cannot be filled from this row (TypeError)")


@given(st.text(st.characters(categories=["Cs", "L", "So"])))
def test_lone_surrogates_are_replaced(text: str) -> None:
    """Texts with lone surrogates are rendered so that they can be hashed and sent."""
    (shown,) = render(task("é{a}").prompt, {"a": [text]}, [0], on_missing="ask")
    assert shown == "é" + "".join("?" if "\ud800" <= char <= "\udfff" else char for char in text)
    assert cache_key(task())(str(shown))


@given(st.lists(st.sampled_from(["x", "y", "z", Failure("prompt", "why")])))
def test_equal_rows_are_asked_once(texts: list[str | Failure]) -> None:
    """Each unique text is asked for its first row; failures pass through in their places."""
    rows, first = dedup(iter(texts), str.encode)
    assert rows == [text if isinstance(text, Failure) else text.encode() for text in texts]
    unique = {text for text in texts if isinstance(text, str)}
    assert first == {text.encode(): texts.index(text) for text in unique}
    assert list(first.values()) == sorted(first.values())


# -- judge ---------------------------------------------------------------------------------------------------------

NUMBER = task(output={"n": int}, max_output_tokens=50)
REPAIRS = 2
BY_LINE = BatchStrategy("lines", ONE_PER_CALL.encode, lambda _, text, __: dict(enumerate(text.split("\n"), 1)))


def batch(size: int = 1, repairs_left: int = REPAIRS, attempt: int = 1) -> Batch:
    return Batch(tuple(Item(bytes([number]), "q") for number in range(size)), repairs_left, attempt)


def judged(text: str, asked: Batch, finish_reason: str = "stop") -> ParsedReply:
    """The judgement of a reply with one line for each prompt."""
    return judge(asked, Reply(text, finish_reason=finish_reason), NUMBER, BY_LINE, REPAIRS)


def test_valid_reply_is_an_answer() -> None:
    """A reply that fits the schema is kept, and nothing is asked again."""
    assert judged('{"n": 1}', batch()) == ParsedReply(answers=((b"\0", {"n": 1}),))


@pytest.mark.parametrize("left", [1, 2])
def test_invalid_reply_is_asked_again_alone_with_the_reason(left: int) -> None:
    """While repairs are left, the same prompt is asked once more, alone and with what was wrong."""
    again = Batch(batch().items, left - 1, 2, "n: input should be a valid integer")
    assert judged('{"n": "1"}', batch(repairs_left=left)) == ParsedReply(retry=(again,))


def test_reply_that_stays_invalid_fails() -> None:
    """Without repairs left the row fails, with the last reason and the number of attempts."""
    failure = Failure("invalid", "the reply is not the JSON asked for (asked 3 times)")
    assert judged("secret", batch(repairs_left=0, attempt=3)) == ParsedReply(failures=((b"\0", failure),))


@pytest.mark.parametrize("text", ['{"n": 1}', '{"n": 1'])
def test_truncated_reply_is_never_parsed(text: str) -> None:
    """A reply cut at the token bound fails, even if it parses, and the failure names the bound."""
    ((_, failure),) = judged(text, batch(), "length").failures
    assert failure.reason == "truncated"
    assert "max_output_tokens=50" in failure.detail
    unbounded = replace(NUMBER, model=SPEC)
    ((_, other),) = judge(batch(), Reply(text, finish_reason="length"), unbounded, BY_LINE, REPAIRS).failures
    assert "by the provider" in other.detail


def test_reply_on_which_a_strategy_raises_is_unreadable() -> None:
    """The batch is halved, and a single row fails."""
    raising = replace(BY_LINE, decode=lambda _, text, __: {1: text.split(": ")[1]})
    halves = judge(batch(5), Reply("?"), NUMBER, raising, REPAIRS).retry
    assert [len(half.items) for half in halves] == [2, 3]
    ((_, failure),) = judge(batch(), Reply("?"), NUMBER, raising, REPAIRS).failures
    assert failure == Failure("invalid", "the strategy 'lines' raised IndexError for the reply")


@given(
    st.lists(st.sampled_from(['{"n": 1}', "bad", None]), min_size=1, max_size=6),
    st.integers(0, 2),
    st.sampled_from(["stop", "length", "unreadable"]),
)
def test_judge_settles_each_prompt_once(lines: list[str | None], left: int, kind: str) -> None:
    """Every prompt of a batch is answered, failed or asked again exactly once, and every retry batch is smaller."""
    asked = batch(len(lines), left)
    texts = {number: line for number, line in enumerate(lines, 1) if line is not None}
    decoded = None if kind == "unreadable" else {**texts, 99: '{"n": 9}'}
    strategy = replace(BY_LINE, decode=lambda *_: decoded)
    reply = Reply("", finish_reason="length" if kind == "length" else "stop")
    parsed = judge(asked, reply, NUMBER, strategy, REPAIRS)
    again = [item.key for retried in parsed.retry for item in retried.items]
    settled = [key for key, _ in (*parsed.answers, *parsed.failures)]
    assert sorted(again + settled) == [item.key for item in asked.items]
    if kind == "stop":
        good = {asked.items[number - 1].key for number, line in texts.items() if line != "bad"}
        assert {key for key, _ in parsed.answers} == good
    else:
        assert not parsed.answers
    size = (len(asked.items), asked.repairs_left)
    assert all((len(retried.items), retried.repairs_left) < size for retried in parsed.retry)
    assert all(retried.attempt == 2 for retried in parsed.retry)


# -- outcomes ------------------------------------------------------------------------------------------------------


@given(st.lists(st.sampled_from([b"a", b"b", b"c", Failure("prompt", "why")])))
def test_every_row_has_its_own_outcome(rows: list[Key | Failure]) -> None:
    """One outcome for each row, in row order: that of its text, or why it was never asked."""
    outcomes = {b"a": Answer({"n": 1}, "m"), b"b": Answer({"n": 2}, "m"), b"c": Failure("invalid", "why")}
    packed = {key: pack_answer(found) if isinstance(found, Answer) else found for key, found in outcomes.items()}
    assert Outcomes(rows, packed) == [row if isinstance(row, Failure) else outcomes[row] for row in rows]
