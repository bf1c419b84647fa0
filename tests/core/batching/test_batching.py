from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ondine_core import Options, Policy, Report, ScriptedModel, enrich, enrich_sync
from ondine_core.batching.formats import RowFormat, RowFormatName
from ondine_core.batching.strategy import (
    ONE_PER_CALL,
    STRATEGIES,
    BatchStrategy,
    explain_fallback,
    find_strategy,
    strategy_for,
)
from ondine_core.errors import ConfigError
from ondine_core.prompts.output_schema import Output
from ondine_core.prompts.task import Task
from ondine_core.prompts.template import Prompt
from ondine_core.types.values import Batch, Call, Failure, Item, Message
from tests.support.batches import OUTPUT, PROMPT, QUESTION, batch, every_strategy, task

# -- one prompt a call ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("output", ["mood", OUTPUT])
def test_single_row_call_is_the_plain_prompt(output: Output) -> None:
    """A prompt that is sent alone is unchanged, with the schema for its reply."""
    asked = task("Classify.\nReview: {review}", output)
    call = ONE_PER_CALL.encode(batch(asked, ["q"]), asked)
    assert call == Call((Message("user", "Classify.\nReview: q"),), asked.schema.json_schema)


def test_complaint_comes_after_the_row() -> None:
    """When a row is asked again, the reason is at the very end, so the fixed part keeps the same bytes."""
    call = ONE_PER_CALL.encode(batch(QUESTION, ["q"], complaint="n: field required"), QUESTION)
    assert call.messages[:-1] == QUESTION.prompt.head
    assert call.messages[-1].content.startswith("Classify.\nReview: q\n\n")
    assert "could not be used: n: field required." in call.messages[-1].content


@given(st.text())
def test_single_row_reply_is_the_whole_answer(text: str) -> None:
    """The reply to a prompt sent alone is its answer, every character of it."""
    assert ONE_PER_CALL.decode(batch(QUESTION, ["q"]), text, QUESTION) == {1: text}


# -- many prompts a call -------------------------------------------------------------------------------------------


@every_strategy
@pytest.mark.parametrize("output", ["mood", OUTPUT])
def test_the_fixed_part_comes_first_and_never_changes(strategy: BatchStrategy, output: Output) -> None:
    """Instructions and examples have the same bytes in every batch, for prefix caches; rows come last."""
    prompt = PROMPT if output is OUTPUT else Prompt(PROMPT.text, system=PROMPT.system)
    asked = task(prompt, output)
    first = strategy.encode(batch(asked, ["a", "b"]), asked)
    second = strategy.encode(batch(asked, ["c"] * 3, complaint="no"), asked)
    assert first.messages[:-1] == second.messages[:-1]
    assert first.messages[0].content.startswith("Be brief.\n\n")
    assert "Review: {review}" in first.messages[0].content
    assert "Classify" not in first.messages[-1].content


def test_batch_schema_is_a_list_of_answers_with_ids() -> None:
    """The provider is sent the schema of one answer as that of a list of answers with ids."""
    schema = json.loads(STRATEGIES["json"].encode(batch(QUESTION, ["a"]), QUESTION).json_schema)
    answer = schema["properties"]["answers"]["items"]
    assert answer["required"] == ["id", "mood", "stars", "sure", "score"]
    assert answer["properties"]["id"] == {"type": "integer"}


@pytest.mark.parametrize(
    ("template", "columns", "name"),
    [
        ("{review}", ["a"], "id"),
        ("{review}", ["id"], "item_id"),
        ("{id}", ["a"], "id"),
        ("{id} {b}", ["a"], "item_id"),
        ("{id} {b}", ["item_id"], "item_id_2"),
        ("{id} {item_id} {item_id_2}", ["a"], "item_id_3"),
    ],
)
def test_columns_may_be_called_id(template: str, columns: list[str], name: str) -> None:
    """The local id gets another name if a column is called `id`, the same in rows and answers."""
    asked = task(template, dict.fromkeys(columns, "string"))
    call = STRATEGIES["json"].encode(Batch((Item(b"", "", dict.fromkeys(asked.prompt.columns, "x")),)), asked)
    assert json.loads(call.json_schema)["properties"]["answers"]["items"]["required"] == [name, *columns]
    travelling = asked.prompt.columns if len(asked.prompt.columns) > 1 else ["x"]
    assert json.loads(call.messages[-1].content) == [{name: 1, **dict.fromkeys(travelling, "x")}]


@pytest.mark.parametrize(
    ("template", "hoisted"),
    [
        ("Is {{ review }} good?", True),
        ("{% if review %}Is {{ review }} good?{% endif %}", False),
        ("{{ review|upper }}", False),
    ],
)
def test_template_with_logic_is_rendered_for_each_row(template: str, hoisted: bool) -> None:
    """A template of plain placeholders is sent once; one with logic is rendered in full for every item."""
    asked = task(Prompt(template, syntax="jinja2"))
    call = STRATEGIES["json"].encode(batch(asked, ["tea"]), asked)
    assert ("{review}" in call.messages[0].content) is hoisted
    assert (explain_fallback(asked) is None) is hoisted
    assert json.loads(call.messages[-1].content)[0] == {
        "id": 1,
        **({"x": "tea"} if hoisted else {"prompt": asked.prompt.render({"review": "tea"})}),
    }


@pytest.mark.parametrize(("name", "share"), [("json", 0.198), ("jsonl", 0.198), ("csv", 0.182), ("xml", 0.22)])
def test_twenty_rows_a_call_send_a_fifth_of_the_prompt(name: str, share: float) -> None:
    """With 150 tokens of instructions and 20 tokens a row, 20 rows a call send a fifth of the characters.

    XML's tags alone cost half as much as such a row.
    """
    asked = task("Please judge. " * 42 + "\n{text}", {"a": str})
    rows = [{"text": f"{number:02d}" + "x" * 78} for number in range(20)]
    items = tuple(Item(b"", asked.prompt.render(row), asked.prompt.fields(row)) for row in rows)

    def characters(*calls: Call) -> int:
        return sum(len(message.content) for call in calls for message in call.messages)

    alone = characters(*(ONE_PER_CALL.encode(Batch((item,)), asked) for item in items))
    together = characters(STRATEGIES[name].encode(Batch(items), asked))
    assert together <= alone * share


def test_unknown_format_is_refused() -> None:
    """The error lists the valid formats."""
    with pytest.raises(ConfigError, match=f"'yaml'; valid are {', '.join(map(repr, STRATEGIES))}"):
        find_strategy("yaml")


def test_each_format_has_a_name_that_type_checkers_know() -> None:
    """The values that type checkers accept for `batch_format` are the names of the formats."""
    assert get_args(RowFormatName) == tuple(STRATEGIES)


def test_prompt_describes_fields_without_a_schema() -> None:
    """Where the provider gets no schema, the prompt describes the fields, except plain texts."""
    kinds = {
        "mood": {"enum": ["good", "bad"]},
        "topic": "string",
        "why": {"type": "string", "description": "in brief"},
    }
    content = STRATEGIES["csv"].encode(batch(QUESTION, ["a"]), task("{review}", kinds)).messages[0].content
    assert content.endswith(
        '\nFields: {"mood":{"enum":["good","bad"],"type":"string"},"why":{"description":"in brief","type":"string"}}'
    )
    plain = STRATEGIES["csv"].encode(batch(QUESTION, ["a"]), task("{review}", {"topic": str})).messages[0].content
    assert "Fields" not in plain


@pytest.mark.parametrize("name", ["csv", "xml"])
def test_examples_show_values_as_in_a_reply(name: str) -> None:
    """An example's list is JSON and its null is nothing, as in a reply."""
    output = {"tags": list[str], "topic": {"type": "string", "nullable": True}}
    asked = task(Prompt("{review}", examples=[("x", {"tags": ["a", "b"], "topic": None})]), output)
    shown = STRATEGIES[name].encode(batch(asked, ["q"]), asked).messages[2].content
    (found,) = (STRATEGIES[name].decode(batch(asked, ["q"]), shown, asked) or {}).values()
    assert asked.schema.parse(found) == {"tags": ["a", "b"], "topic": None}


# -- a user's own strategy ------------------------------------------------------------------------------------------


def write_lines(batch: Batch, _: Task) -> Call:
    """Numbered lines, after the template."""
    lines = "\n".join(f"{number}. {item.fields['review']}" for number, item in enumerate(batch.items, 1))
    return Call((Message("user", f"For each line, reply with its number and the mood: {lines}"),))


def read_lines(_: Batch, text: str, __: Task) -> Mapping[int, str]:
    """The mood on each numbered line; raises for anything else."""
    pairs = [line.split(". ") for line in text.splitlines()]
    return {int(number): json.dumps({"mood": mood}) for number, mood in pairs}


LINES = BatchStrategy("lines", write_lines, read_lines)


def mood_of(prompt: str) -> Any:
    """Good or bad for each line, and nothing readable for lines that ask for it."""
    if "nonsense" in prompt:
        return "What?"
    if not (lines := re.findall(r"(\d+)\. (\w+)", prompt)):
        return {"mood": prompt.removeprefix("Mood of: ")}
    return "\n".join(f"{number}. {word}" for number, word in reversed(lines))


def test_user_defined_strategy() -> None:
    """Two functions encode and decode calls; rows that they cannot decode are asked again in smaller calls."""
    words = [f"word{number}" for number in range(12)] + ["nonsense"]
    model = ScriptedModel(mood_of, max_batch_size=None)
    warnings: list[str] = []
    policy = Policy(strategy=LINES, batch_size=5, max_repairs=0)
    options = Options(policy=policy, on_warning=warnings.append)
    report = asyncio.run(
        enrich({"review": words}, prompt="Mood of: {review}", output={"mood": str}, model=model, options=options)
    )
    *good, bad = report.outcomes
    assert [outcome.values for outcome in good] == [{"mood": word} for word in words[:-1]]
    assert isinstance(bad, Failure)
    # Calls of 5, 5 and 3; the last cannot be read and comes again as 1 and 2, and the 2 as 1 and 1.
    assert len(model.calls) == 3 + 2 + 2
    # The strategy raises for two of them, which is reported once, without the text of a row.
    (warning,) = warnings
    assert re.match(r"decode of the strategy 'lines' raised ValueError \(test_batching\.py:\d+\); each batch", warning)


def enrich_with(strategy: BatchStrategy, model: ScriptedModel) -> Report:
    """Four rows in one call."""
    options = Options(policy=Policy(strategy=strategy, batch_size=4))
    table = {"review": ["word1", "word2", "word3", "word4"]}
    return enrich_sync(table, prompt="Mood of: {review}", output={"mood": str}, model=model, options=options)


@pytest.mark.parametrize(
    ("strategy", "message"),
    [
        (replace(LINES, encode=lambda *_: None), "encode of the strategy 'lines' returned a NoneType, not a Call"),
        (replace(LINES, encode=lambda *_: Call(())), "a Call without messages of Message"),
        (replace(LINES, encode=lambda *_: Call(({"role": "user"},))), "a Call without messages of Message"),
        (
            strategy_for(RowFormat("own", "{example}", lambda _: b"", list)),
            "write of the RowFormat 'own' returned a bytes,",
        ),
    ],
)
def test_strategy_that_writes_no_call_is_an_error_in_words(strategy: BatchStrategy, message: str) -> None:
    """Before any call is made."""
    model = ScriptedModel(mood_of, max_batch_size=None)
    with pytest.raises(ConfigError, match=message):
        enrich_with(strategy, model)
    assert model.calls == []


@pytest.mark.parametrize("read", [[], True, {1: {"mood": "x"}}, {1: None}, {1: b"x"}], ids=str)
def test_strategy_that_reads_something_else_than_texts_has_read_nothing(read: Any) -> None:
    """Its rows are asked again, in the end alone, and each has its own answer."""
    report = enrich_with(replace(LINES, decode=lambda *_: read), ScriptedModel(mood_of, max_batch_size=None))
    assert report.column("mood") == ["word1", "word2", "word3", "word4"]


@pytest.mark.parametrize("ask", ["{lines}", "{", "{}"])
def test_instruction_of_a_format_that_cannot_be_filled_is_refused(ask: str) -> None:
    """When the format is made."""
    with pytest.raises(ConfigError, match=r"\{example\} is its only placeholder"):
        RowFormat("own", ask, str, list)
