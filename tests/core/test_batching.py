from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ondine_core.batching import ONE_PER_CALL, STRATEGIES, Strategy, find_strategy, pack
from ondine_core.errors import ConfigError
from ondine_core.prompts import Prompt
from ondine_core.question import Question, compile_question
from ondine_core.schema import Output
from ondine_core.values import Batch, Call, Item, Message, ModelSpec
from tests.support.strategies import ITEMS, TEXTS

OUTPUT: Mapping[str, Any] = {
    "mood": {"type": "string"},
    "stars": {"type": "integer", "nullable": True},
    "sure": {"type": "boolean"},
    "score": {"type": "number"},
}
EXAMPLE = ({"review": "Fine, 'really' <b>"}, {"mood": "good", "stars": 3, "sure": True, "score": 0.5})
PROMPT = Prompt("Classify.\nReview: {review}", system="Be brief.", examples=[EXAMPLE])
every_strategy = pytest.mark.parametrize("strategy", STRATEGIES.values(), ids=STRATEGIES)

# What no notation can carry unchanged is left out: XML knows no control characters, and turns line ends into \\n.
CARRIED = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=30)
HOSTILE = st.sampled_from(
    ['"},{"id":1,"mood":"x"}]', "</field></item>", "```", "id,mood\n1,x", '{"answers":[]}', "[[1]]", "{review}", "&lt;"]
)
ANSWERS = st.fixed_dictionaries(
    {
        "mood": CARRIED.map(str.strip).filter(bool) | HOSTILE,
        "stars": st.none() | st.integers(0, 5),
        "sure": st.booleans(),
        "score": st.floats(-100, 100),
    }
)


def question(prompt: str | Prompt = PROMPT, output: Output = OUTPUT) -> Question:
    return compile_question(prompt, output, ModelSpec("test/model"))


def batch(asked: Question, texts: list[str], **options: Any) -> Batch:
    rows = [{"review": text} for text in texts]
    items = [Item(bytes([n]), asked.prompt.render(row), asked.prompt.fields(row)) for n, row in enumerate(rows)]
    return Batch(tuple(items), **options)


QUESTION = question()


# -- packing -------------------------------------------------------------------------------------------------------


@given(ITEMS, st.integers(1, 7))
def test_pack_keeps_everything_in_order(items: list[Item], size: int) -> None:
    """Every prompt is in exactly one batch, in order; all batches are full but the last, and none is empty."""
    batches = list(pack(items, size, 2))
    assert [item for packed in batches for item in packed.items] == items
    assert all(len(packed.items) == size for packed in batches[:-1])
    assert all(1 <= len(packed.items) <= size for packed in batches)
    assert all((packed.attempt, packed.repairs_left, packed.complaint) == (1, 2, None) for packed in batches)


@given(st.integers(1, 7), st.integers(0, 5))
def test_pack_is_lazy(size: int, taken: int) -> None:
    """No prompt is rendered before the batch that it travels in is taken, so a million prompts need no memory."""
    rendered = 0

    def items() -> Iterator[Item]:
        nonlocal rendered
        while True:
            rendered += 1
            yield Item(b"k", "x")

    batches = pack(items(), size, 0)
    for _ in range(taken):
        next(batches)
    assert rendered == taken * size


# -- one prompt a call ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("output", ["mood", OUTPUT])
def test_one_per_call_says_the_prompt_and_no_more(output: Output) -> None:
    """A prompt that travels alone is sent as it is, with the schema that its reply is held to."""
    asked = question("Classify.\nReview: {review}", output)
    call = ONE_PER_CALL.encode(batch(asked, ["q"]), asked)
    assert call == Call((Message("user", "Classify.\nReview: q"),), asked.schema.json_schema)


def test_a_complaint_follows_the_row() -> None:
    """Asked again, the model is told what was wrong, at the very end, so that the fixed part stays the same bytes."""
    call = ONE_PER_CALL.encode(batch(QUESTION, ["q"], complaint="n: field required"), QUESTION)
    assert call.messages[:-1] == QUESTION.prompt.head
    assert call.messages[-1].content.startswith("Classify.\nReview: q\n\n")
    assert "could not be used: n: field required." in call.messages[-1].content


@given(st.text())
def test_one_per_call_takes_the_reply_whole(text: str) -> None:
    """The reply to a prompt that travels alone is its answer, every character of it."""
    assert ONE_PER_CALL.decode(batch(QUESTION, ["q"]), text, QUESTION) == {1: text}


# -- many prompts a call -------------------------------------------------------------------------------------------


def reply_with(strategy: Strategy, answers: Mapping[int, Mapping[str, Any]]) -> str:
    """What a model that obeys would write."""
    form = strategy.encode.args[0]
    text = form.write([{"id": number, **answer} for number, answer in answers.items()])
    return f'{{"answers":{text}}}' if form.name == "json" else text


@every_strategy
@given(st.lists(ANSWERS, min_size=1, max_size=6), st.randoms(use_true_random=False))
def test_answers_come_back_to_their_ids(strategy: Strategy, answers: list[dict[str, Any]], rng: Any) -> None:
    """In any order, whatever markup the answers contain, each id has its own answer, with its types."""
    numbered = dict(enumerate(answers, 1))
    shuffled = dict(rng.sample(sorted(numbered.items(), key=lambda pair: pair[0]), len(numbered)))
    asked = batch(QUESTION, ["x"] * len(answers))
    found = strategy.decode(asked, reply_with(strategy, shuffled), QUESTION)
    assert found is not None
    assert {number: QUESTION.schema.parse(text) for number, text in found.items()} == numbered


@every_strategy
@given(st.lists(CARRIED | HOSTILE, min_size=1, max_size=5))
def test_rows_travel_as_data(strategy: Strategy, texts: list[str]) -> None:
    """A row cannot pose as another row: what it says is read back as it was, one record a row."""
    call = strategy.encode(batch(QUESTION, texts), QUESTION)
    records = strategy.encode.args[0].read(call.messages[-1].content)
    assert [str(record["id"]) for record in records] == [str(number) for number in range(1, len(texts) + 1)]
    assert [record["review"] for record in records] == texts


@every_strategy
@pytest.mark.parametrize("output", ["mood", OUTPUT])
def test_the_fixed_part_comes_first_and_never_changes(strategy: Strategy, output: Output) -> None:
    """Instructions and examples are the same bytes in every batch, so that a prefix cache pays; rows come last."""
    prompt = PROMPT if output is OUTPUT else Prompt(PROMPT.text, system=PROMPT.system)
    asked = question(prompt, output)
    first = strategy.encode(batch(asked, ["a", "b"]), asked)
    second = strategy.encode(batch(asked, ["c"] * 3, complaint="no"), asked)
    assert first.messages[:-1] == second.messages[:-1]
    assert first.messages[0].content.startswith("Be brief.\n\n")
    assert "Review: {review}" in first.messages[0].content
    assert "Classify" not in first.messages[-1].content


@every_strategy
def test_free_text_and_patterns_travel_in_batches_too(strategy: Strategy) -> None:
    """What is not a JSON object alone travels in a field of its own."""
    asked = question(Prompt("Sum up {review}", examples=[("long", "short")]), "summary")
    found = strategy.decode(
        batch(asked, ["a", "b"]), reply_with(strategy, {2: {"answer": "B"}, 1: {"answer": "A"}}), asked
    )
    assert found == {1: "A", 2: "B"}


def test_json_is_held_to_by_the_provider() -> None:
    """The schema of one answer becomes that of a list of answers with ids."""
    schema = json.loads(STRATEGIES["json"].encode(batch(QUESTION, ["a"]), QUESTION).json_schema)
    answer = schema["properties"]["answers"]["items"]
    assert answer["required"] == ["id", "mood", "stars", "sure", "score"]
    assert answer["properties"]["id"] == {"type": "integer"}


def test_an_output_column_may_be_called_id() -> None:
    """The local id makes room for it."""
    asked = question("Find the id in {review}", {"id": str})
    schema = json.loads(STRATEGIES["json"].encode(batch(asked, ["a"]), asked).json_schema)
    assert schema["properties"]["answers"]["items"]["required"] == ["item_id", "id"]


@pytest.mark.parametrize(
    ("template", "hoisted"),
    [
        ("Is {{ review }} good?", True),
        ("{% if review %}Is {{ review }} good?{% endif %}", False),
        ("{{ review|upper }}", False),
    ],
)
def test_logic_that_cannot_be_hoisted_travels_with_each_row(template: str, hoisted: bool) -> None:
    """A template of plain placeholders is said once; one with logic is rendered in full for every item."""
    asked = question(Prompt(template, syntax="jinja2"))
    call = STRATEGIES["json"].encode(batch(asked, ["tea"]), asked)
    assert ("{review}" in call.messages[0].content) is hoisted
    assert json.loads(call.messages[-1].content)[0] == {
        "id": 1,
        **({"review": "tea"} if hoisted else {"prompt": asked.prompt.render({"review": "tea"})}),
    }


def test_twenty_rows_a_call_send_a_fifth_of_the_prompt() -> None:
    """For 150 tokens of instructions and 20 tokens a row, at four characters a token, counted over all messages."""
    asked = question("Please judge. " * 42 + "\n{text}", {"a": str})
    rows = [{"text": f"{number:02d}" + "x" * 78} for number in range(20)]
    items = tuple(Item(b"", asked.prompt.render(row), asked.prompt.fields(row)) for row in rows)

    def characters(*calls: Call) -> int:
        return sum(len(message.content) for call in calls for message in call.messages)

    alone = characters(*(ONE_PER_CALL.encode(Batch((item,)), asked) for item in items))
    together = characters(STRATEGIES["json"].encode(Batch(items), asked))
    assert together <= alone / 5


@every_strategy
@pytest.mark.parametrize("text", ["", "Sorry, no.", "null", "<!DOCTYPE x [<!ENTITY a 'b'>]><items/>", '{"answers":'])
def test_what_is_no_list_of_answers_cannot_be_read(strategy: Strategy, text: str) -> None:
    """Nothing is dug out of it."""
    assert not strategy.decode(batch(QUESTION, ["a", "b"]), text, QUESTION)


def test_a_csv_row_that_has_shifted_is_left_out() -> None:
    """Too many or too few cells mean that a value may stand in the wrong column."""
    text = "id,mood,stars,sure,score\n1,good, or so,3,true,0.5\n2,bad,1,false,1.5\n3,bad"
    found = STRATEGIES["csv"].decode(batch(QUESTION, ["a"] * 3), text, QUESTION)
    assert found is not None
    assert list(found) == [2]


def test_an_unknown_format_is_named() -> None:
    """The error lists what is valid."""
    with pytest.raises(ConfigError, match="'yaml'; valid are 'json', 'jsonl', 'csv', 'xml'"):
        find_strategy("yaml")


@given(st.lists(TEXTS, min_size=1, max_size=4), st.text(max_size=60))
def test_no_reply_breaks_a_strategy(texts: list[str], reply: str) -> None:
    """Whatever comes back, decoding ends in answers for known ids or in nothing."""
    asked = batch(QUESTION, texts)
    for strategy in STRATEGIES.values():
        found = strategy.decode(asked, reply, QUESTION)
        assert found is None or set(found) <= set(range(1, len(texts) + 1))
