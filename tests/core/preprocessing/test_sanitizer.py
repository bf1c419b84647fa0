"""The sanitizer: what is replaced in a row, by what, and what is restored in an answer."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date
from decimal import Decimal
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ondine_core import Answer, ConfigError, ModelSpec, Options, Policy, Prompt, ScriptedModel, enrich_sync
from ondine_core.preprocessing.sanitizer import RULE_NAMES, Sanitizer, find_sanitizer, redact, restore, sanitize
from ondine_core.preprocessing.sanitizer.finding import find
from tests.support.asking import QUICK
from tests.support.pii import corpus
from tests.support.provider import Provider, after, status

REDACT, PLACEHOLDER = Sanitizer(), Sanitizer("placeholder")
HASH = Sanitizer("hash", salt="a salt of sixteen")
MODES = (REDACT, PLACEHOLDER, HASH)

DATA = (
    "alice@example.com",
    "123-45-6789",
    "4111 1111 1111 1111",
    "(555) 123-4567",
    "+49 30 901820",
    "DE89370400440532013000",
    "192.168.178.23",
    "2001:db8::ff00:42:8329",
    "ghp_" + "16C7e42F292c6912E7710c83",
)
"""One of each kind, found in any surroundings that are not part of it."""
NOISE = st.one_of(
    st.text(max_size=12),
    st.sampled_from(
        ["<EMAIL_1>", "[EMAIL]", "<PHONE_2>", "email_3", "\ud800", "\x00", "\u200b", "{x}", "://", "password: "]
    ),
)
TEXTS = st.lists(
    st.one_of(st.sampled_from(DATA), NOISE, st.sampled_from([" ", ".", ",", "-", "_", "/", ":", "+", ""])), max_size=12
).map("".join)


def values(row: Mapping[str, Any], sanitizer: Sanitizer) -> Mapping[str, Any]:
    return sanitize(row, sanitizer).values


# -- laws ----------------------------------------------------------------------------------------------------------


@given(TEXTS, st.sampled_from(MODES))
@example("123-45-6789.555-123-4567.123-45-6789.10.0.0.1.a@b.com_c@d.com", REDACT)
def test_nothing_is_left_that_a_rule_matches(text: str, sanitizer: Sanitizer) -> None:
    """A sanitized text has no match of any rule, for any combination of neighbours."""
    assert find(values({"x": text}, sanitizer)["x"], sanitizer.chosen) == []


@given(st.lists(TEXTS, min_size=1, max_size=3))
@example(["<EMAIL_1> a@b.com", "email_2 and <EMAIL_3>"])
def test_placeholders_are_restored_exactly(texts: list[str]) -> None:
    """An answer that repeats a row gets it back unchanged, even placeholders that the row itself contained."""
    row = {str(number): text for number, text in enumerate(texts)}
    sanitized = sanitize(row, PLACEHOLDER)
    assert restore(dict(sanitized.values), sanitized.raw) == row


@given(st.sampled_from(DATA), st.text(alphabet=" \n\t;|\"'(){}!?é漢", min_size=1, max_size=5), st.sampled_from(MODES))
def test_each_kind_of_datum_is_found_between_any_punctuation(datum: str, around: str, sanitizer: Sanitizer) -> None:
    """Also between any blanks."""
    assert datum not in values({"x": f"so{around}{datum}{around}so"}, sanitizer)["x"]


@pytest.mark.parametrize("sanitizer", MODES, ids=lambda sanitizer: sanitizer.mode)
def test_sanitizing_is_idempotent(sanitizer: Sanitizer) -> None:
    """Marks do not match any rule."""
    for sentence in corpus():
        once = values({"x": sentence.text}, sanitizer)
        assert values(once, sanitizer) == once


# -- modes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sanitizer", "texts"),
    [
        (REDACT, ["[EMAIL] or [EMAIL], call [PHONE]", "[EMAIL]"]),
        (PLACEHOLDER, ["<EMAIL_1> or <EMAIL_2>, call <PHONE_1>", "<EMAIL_1>"]),
    ],
    ids=["redact", "placeholder"],
)
def test_marks_name_the_kind(sanitizer: Sanitizer, texts: list[str]) -> None:
    """A placeholder also has a number, the same for the same text in all columns of a row."""
    row = {"a": "alice@example.com or bob@example.com, call 555-123-4567", "b": "alice@example.com"}
    assert list(values(row, sanitizer).values()) == texts


def test_hashes_are_the_same_for_the_same_text_and_salt() -> None:
    """Rows can be compared by hash within one salt; the text cannot be read from it."""
    row, other = {"x": "I am alice@example.com"}, {"x": "and alice@example.com is me"}
    (mark,) = {values(one, HASH)["x"].split("[")[1].split("]")[0] for one in (row, other)}
    assert mark.startswith("EMAIL#")
    assert len(mark) == len("EMAIL#") + 16
    assert values(row, Sanitizer("hash", salt="another long salt!")) != values(row, HASH)


def test_a_salt_is_not_shown() -> None:
    """It is a secret."""
    assert "sixteen" not in repr(HASH) + str(HASH)


def test_placeholder_written_in_a_row_is_not_restored() -> None:
    """A row that contains `<EMAIL_1>` keeps it, and its own address gets another number, in any spelling."""
    for written in ("<EMAIL_1>", "email_1", "&lt;EMAIL_01&gt;"):
        sanitized = sanitize({"a": "alice@example.com", "b": [written]}, PLACEHOLDER)
        assert sanitized.values["a"] == "<EMAIL_2>"
        assert restore(f"{written} is <EMAIL_2>", sanitized.raw) == f"{written} is alice@example.com"


def test_restoring_is_recursive_and_single_pass() -> None:
    """Texts in lists and objects are restored; restored text is not searched again."""
    raw = {"<EMAIL_1>": "<EMAIL_2>", "<EMAIL_2>": "b@example.com"}
    answer = {"a": ["<EMAIL_1>", {"b": "to <EMAIL_2>!"}], "n": 1, "none": None, "other": "<EMAIL_3> <EMAIL_12>"}
    assert restore(answer, raw) == {
        "a": ["<EMAIL_2>", {"b": "to b@example.com!"}],
        "n": 1,
        "none": None,
        "other": "<EMAIL_3> <EMAIL_12>",
    }


def test_redaction_for_display_has_fixed_marks() -> None:
    """In every mode."""
    assert {redact("write to a@b.com", sanitizer) for sanitizer in MODES} == {"write to [EMAIL]"}


# -- values --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "sanitized"),
    [
        (5551234567, "[PHONE]"),
        (5551234567.0, "[PHONE]"),
        (np.int64(4111111111111111), "[CREDIT_CARD]"),
        ("5551234567", "[PHONE]"),
        (["a@b.com", 1, None], ["[EMAIL]", 1, None]),
        (("a@b.com",), ("[EMAIL]",)),
        ({"z", "c@d.com", "b"}, ["b", "[EMAIL]", "z"]),
        ({"to": {"mail": "a@b.com"}, "n": 5}, {"to": {"mail": "[EMAIL]"}, "n": 5}),
        ({"a@b.com": 1, "c@d.com": 2}, {"[EMAIL]": 1, "[EMAIL] (2)": 2}),
        (np.array(["a@b.com", "b"]), ["[EMAIL]", "b"]),
        (b"mail a@b.com", "mail [EMAIL]"),
        ("call\na@b.com", "call\n[EMAIL]"),
    ],
)
def test_values_of_every_type_are_searched(value: Any, sanitized: Any) -> None:
    """Numbers, nested values, keys, arrays and bytes, and no entry of a mapping is lost."""
    assert values({"x": value}, REDACT)["x"] == sanitized


@pytest.mark.parametrize(
    "value", [None, True, 7, 1.5, float("nan"), Decimal("1.10"), date(2024, 1, 15), [1, [2]], {"a": 1}, {"b", "a"}]
)
def test_values_without_a_datum_keep_their_type(value: Any) -> None:
    """A template may still calculate with them."""
    row = {"x": value, "y": np.arange(3)}
    assert sanitize(row, REDACT).values is row


# -- settings ------------------------------------------------------------------------------------------------------


def test_only_the_chosen_rules_are_used() -> None:
    """Rules are chosen by name, in upper or lower case."""
    row = {"x": "a@b.com 555-123-4567 10.0.0.1"}
    assert values(row, Sanitizer(rules=["email", "IP"]))["x"] == "[EMAIL] 555-123-4567 [IP]"
    assert values(row, Sanitizer(rules="phone"))["x"] == "a@b.com [PHONE] 10.0.0.1"


def test_user_patterns() -> None:
    """They apply after the built-in rules, replace their group `value`, and see the already sanitized text."""
    own = Sanitizer(
        "placeholder", patterns={"customer": r"\bC-\d{6}\b", "name": r"(?i)\bname: (?P<value>[^\n,]{1,60})"}
    )
    row = {"x": "Name: Zoë, C-123456 wrote twice to a@b.com about C-123456"}
    sanitized = sanitize(row, own)
    assert sanitized.values["x"] == "Name: <NAME_1>, <CUSTOMER_1> wrote twice to <EMAIL_1> about <CUSTOMER_1>"
    assert sanitized.raw["<NAME_1>"] == "Zoë"
    assert sanitized.found == {"NAME": 1, "CUSTOMER": 2, "EMAIL": 1}
    assert values(row, Sanitizer(rules=(), patterns={"CUSTOMER": r"C-\d{6}"}))["x"].endswith("a@b.com about [CUSTOMER]")


def test_pattern_that_matches_its_own_mark_is_applied_once() -> None:
    """A pattern that would find its own mark again is applied once."""
    own = Sanitizer(patterns={"ANY": r"[A-Z<\[][A-Z_<>\]\[]{2,30}"})
    assert values({"x": "see ABCDEF and a@b.com"}, own)["x"] == "see [ANY] and [EMAIL]"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("mask", "sanitize='mask'; valid modes are 'redact', 'placeholder', 'hash'"),
        ({"mode": "redact", "rule": ["email"]}, "sanitize has no 'rule'; it takes 'mode', 'rules', 'patterns', 'salt'"),
        ({"rules": ["name"]}, "There is no rule 'name'; those are 'api_key', 'iban'"),
        ({"rules": []}, "The sanitizer has no rules"),
        ({"mode": "hash"}, "A salt belongs to mode='hash', which needs one"),
        ({"salt": "x" * 20}, "A salt belongs to mode='hash'"),
        ({"mode": "hash", "salt": "short"}, "The salt is too short to be secret"),
        ({"patterns": {"EMAIL": "x"}}, "A pattern cannot be called 'EMAIL'"),
        ({"patterns": {"e-mail": "x"}}, "A pattern cannot be called 'e-mail'"),
        ({"patterns": {"X": "("}}, "The pattern of 'X' is not a regular expression"),
        ({"patterns": {"X": "a*"}}, "The pattern of 'X' matches the empty text"),
        ({"patterns": {"X": b"a"}}, "write it as a text"),
        ({"patterns": ["C-[0-9]{6}"]}, "is a mapping of names to patterns"),
        ({"patterns": {"X": 5}}, "The pattern of 'X' is not a regular expression"),
        (7, "sanitize=7; give a mode, a Sanitizer, or a mapping"),
    ],
)
def test_invalid_settings_are_refused_when_declared(given: Any, message: str) -> None:
    """The message says what is valid."""
    with pytest.raises(ConfigError) as raised:
        find_sanitizer(given)
    assert message in str(raised.value)


def test_a_short_salt_is_not_in_the_message() -> None:
    """It may be a real secret."""
    with pytest.raises(ConfigError) as raised:
        Sanitizer("hash", salt="tooshort")
    assert "tooshort" not in str(raised.value)


def test_every_rule_is_in_the_corpus() -> None:
    """So each has figures."""
    assert {name for sentence in corpus() for name, _, _ in sentence.labels} == set(RULE_NAMES)


# -- whole runs ----------------------------------------------------------------------------------------------------

PROMPT = "Who wrote this?\nText: {text}"


def who(prompt: str) -> dict[str, str]:
    return {"who": prompt.rpartition("Text: ")[2]}


def test_rows_share_a_prompt_and_get_their_own_data_back() -> None:
    """Rows that differ only in personal data are asked once; each answer has its row's own data."""
    texts = ["by a@b.com", "by c@d.com", "by <EMAIL_1>", "by <EMAIL_1>, not e@f.com", None]
    model = ScriptedModel(who)
    report = enrich_sync({"text": texts}, prompt=PROMPT, output={"who": str}, model=model, sanitize="placeholder")
    assert report.column("who") == texts
    assert len(model.calls) == 2
    assert report.values(as_kept=True)["who"][:3] == ["by <EMAIL_1>"] * 3
    answers = [outcome for outcome in report.outcomes[1:3] if isinstance(outcome, Answer)]
    assert [answer.values["who"] for answer in answers] == texts[1:3]
    assert report.preprocess_stats is not None
    assert (report.preprocess_stats.rows_sanitized, report.preprocess_stats.found) == (3, {"EMAIL": 3})


def test_reused_answers_are_restored_for_the_rows_of_this_run(tmp_path: Any) -> None:
    """A stored answer, which holds the placeholder only, is restored with the data of the row that reuses it."""
    store = tmp_path / "answers.db"
    for address in ("a@b.com", "c@d.com"):
        model = ScriptedModel(who)
        report = enrich_sync(
            {"text": [f"by {address}"]},
            prompt=PROMPT,
            output={"who": str},
            model=model,
            sanitize="placeholder",
            options=Options(store=store),
        )
        assert report.column("who") == [f"by {address}"]
        assert len(model.calls) == (address == "a@b.com")
    kept = b"".join(file.read_bytes() for file in tmp_path.iterdir())
    assert b"by <EMAIL_1>" in kept
    assert b"a@b.com" not in kept
    assert b"c@d.com" not in kept


def test_rows_that_a_fallback_answers_get_their_own_data_back() -> None:
    """Whichever model answered."""
    texts = [f"row {number}: user{number}@example.com" for number in range(20)]
    with Provider(fault=after(5, status(401))) as first, Provider() as second:
        chosen = Options(
            policy=Policy(max_concurrency=2, retry=QUICK),
            fallbacks=(ModelSpec("openai_compatible/second", base_url=second.base_url),),
        )
        model = ModelSpec("openai_compatible/first", base_url=first.base_url)
        report = enrich_sync(
            {"text": texts}, prompt=PROMPT, output={"answer": str}, model=model, sanitize="placeholder", options=chosen
        )
    assert report.column("answer") == [text.partition(": ")[2] for text in texts]
    assert len(report.models) == 2


def test_examples_are_sanitized_like_rows() -> None:
    """The input of an example is cleaned and sanitized, and its answer has the same placeholder."""
    model = ScriptedModel(who)
    prompt = Prompt(PROMPT, examples=[("<b>Ask</b> ann@b.com or bob@b.com", {"who": "bob@b.com"})])
    report = enrich_sync(
        {"text": ["by a@b.com"]},
        prompt=prompt,
        output={"who": str},
        model=model,
        sanitize="placeholder",
        clean=["html"],
    )
    assert report.column("who") == ["by a@b.com"]
    contents = [message.content for message in model.calls[0].messages]
    assert contents[:2] == ["Who wrote this?\nText: Ask <EMAIL_1> or <EMAIL_2>", '{"who": "<EMAIL_2>"}']


@pytest.mark.parametrize("datum", ["4111 1111 1111 1111", "DE89 3704 0044 0532 0130 00", "ann@example.com"])
def test_truncation_leaves_no_part_of_a_datum(datum: str) -> None:
    """A text is cut before it, wherever the limit is; the same holds for examples."""
    text = f"Please refund it to {datum} today, since I have been waiting for it for weeks."
    for tokens in range(8, 30):
        model = ScriptedModel({"": "yes"})
        prompt = Prompt("{mail}", examples=[(text, "no")])
        enrich_sync(
            {"mail": [text]}, prompt=prompt, output="x", model=model, clean=[{"truncate": tokens}], sanitize="redact"
        )
        (call,) = model.calls
        for message in (call.messages[0], call.messages[-1]):
            sent = message.content.removesuffix(" […]")
            assert sent == text.replace(datum, f"[{sent.partition('[')[2].partition(']')[0]}]")[: len(sent)]


def test_without_a_sanitizer_nothing_is_restored() -> None:
    """Placeholders in rows and answers are ordinary text."""
    report = enrich_sync({"text": ["<EMAIL_1> a@b.com"]}, prompt=PROMPT, output={"who": str}, model=ScriptedModel(who))
    assert report.column("who") == ["<EMAIL_1> a@b.com"]
    assert report.preprocess_stats is None
