"""The command `why`: key, answer, run and cost of a row or a text; of a failed one the reason and a kept reply."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ondine_core import Prompt, Sanitizer, ScriptedModel, enrich_sync
from ondine_core.engine.definition import keys_of_row, keys_of_text, read_definition, write_definition
from ondine_core.engine.interpreting import sanitize_reply
from ondine_core.engine.options import Options
from ondine_core.engine.policy import Policy
from ondine_core.engine.report import Report
from ondine_core.engine.steps import render
from ondine_core.errors import ConfigError
from ondine_core.prompts.task import cache_key, compile_task
from ondine_core.store.__main__ import main
from ondine_core.store.connect import connect
from ondine_core.types.ledger import Origin
from ondine_core.types.values import ModelSpec
from tests.support.ledger import KINDS, fresh_place, look

ORIGIN = Origin("run-7", "shop/moods", "2026-01-05")
DAY_S = 86400.0

Why = Callable[..., str]


@pytest.fixture(params=KINDS)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where no store has been yet."""
    return fresh_place(request.param, tmp_path)


@pytest.fixture
def why(place: str, capsys: pytest.CaptureFixture[str]) -> Why:
    """The output of `why`."""

    def why(*arguments: str) -> str:
        capsys.readouterr()
        assert main([place, "why", *arguments]) == 0
        return capsys.readouterr().out

    return why


def ask(place: str, *rows: str, **policy: Any) -> Report:
    """Ask about reviews; of those that leak, replies are invalid and contain an address and colours."""
    model = ScriptedModel(
        lambda text: "Sorry! Ask bob@example.com\n\x1b[31mplease" if "leaks" in text else {"mood": "good"}
    )
    return enrich_sync(
        {"review": list(rows)},
        prompt=Prompt("Which mood?\n{review}", system="Be brief."),
        output={"mood": str},
        model=model,
        clean=["whitespace"],
        sanitize="placeholder",
        options=Options(store=place, policy=Policy(max_repairs=1, **policy), origin=ORIGIN),
    )


def test_an_answer_is_found_by_row_text_and_prompt(place: str, why: Why) -> None:
    """With key, values, model, run, asset, partition and cost; rows are preprocessed as in a run."""
    ask(place, "Lovely,   says ann@example.com")
    output = why("--asset", "shop/moods", "--row", json.dumps({"review": "Lovely, says carl@example.com"}))
    for line in (
        "key",
        'answer   {"mood": "good"}',
        "run      run-7",
        "asset    shop/moods/2026-01-05",
        "cost     $0.0",
    ):
        assert line in output
    assert why("--text", "Lovely, says ann@example.com") == output
    assert why("--text", "Which mood?\nLovely, says <EMAIL_1>") == output
    assert why("--key", output.split()[1]) == output


def test_texts_of_a_command_are_utf8_whatever_the_locale_is(
    place: str, why: Why, capsys: pytest.CaptureFixture[str]
) -> None:
    """A locale that cannot express them, as `LC_ALL=C`, changes neither the text nor the row nor the asset."""
    ask(place, "Schön")
    text, asset, row = [
        text.encode().decode("ascii", "surrogateescape") for text in ("Schön", "größe/x", '{"review": "Schön"}')
    ]
    assert 'answer   {"mood": "good"}' in why("--text", text)
    assert 'answer   {"mood": "good"}' in why("--row", row)
    assert main([place, "why", "--asset", asset, "--text", text]) == 2
    assert "'größe/x'" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main([place, "why", "--text", "\udcff"])
    assert "is not UTF-8" in capsys.readouterr().err


def test_reply_of_a_failure_is_kept_only_on_request(place: str, why: Why) -> None:
    """With `keep_replies` it is stored sanitized; without it only the reason is."""
    ask(place, "It leaks")
    output = why("--text", "It leaks")
    assert "failure  invalid: the reply is not the JSON asked for (asked 2 times)" in output
    assert "reply    not kept" in output
    assert look(place, "SELECT COUNT(*) FROM ondine.replies") == [(0,)]
    ask(place, "It leaks", keep_replies=True)
    output = why("--asset", "shop/moods", "--text", "It leaks")
    assert "reply    Sorry! Ask [EMAIL]\n         \\x1b[31mplease" in output
    assert "bob@" not in str(look(place, "SELECT reply FROM ondine.replies"))


def test_a_kept_reply_is_in_no_message(place: str, caplog: pytest.LogCaptureFixture) -> None:
    """It is in the store and nowhere else."""
    with caplog.at_level(logging.DEBUG):
        report = ask(place, "It leaks", keep_replies=True)
    assert look(place, "SELECT COUNT(*) FROM ondine.replies") == [(1,)]
    assert "Sorry" not in caplog.text + str(list(report.outcomes.failures())) + repr(report)


def test_replies_are_kept_for_thirty_days(place: str, why: Why) -> None:
    """An older one is not shown, and the next run or `prune` removes it."""
    ask(place, "It leaks", "The other leaks", keep_replies=True)
    age(place, "replies", "kept_at", 31 * DAY_S)
    assert "not kept" in why("--text", "It leaks")
    ask(place, "Lovely")
    assert look(place, "SELECT COUNT(*) FROM ondine.replies") == [(0,)]
    ask(place, "It leaks", keep_replies=True)
    age(place, "replies", "kept_at", 8 * DAY_S)
    assert main([place, "prune", "--older-than", "1w"]) == 0
    assert look(place, "SELECT COUNT(*) FROM ondine.replies") == [(0,)]
    assert look(place, "SELECT COUNT(*) FROM ondine.failures") == [(2,)]


def age(place: str, table: str, column: str, seconds: float) -> None:
    database = connect(place)
    try:
        database.write(lambda: database.run(f"UPDATE ondine.{table} SET {column} = {column} - ?", [seconds]))  # noqa: S608
    finally:
        database.close()


def test_unknown_asset_row_or_key_is_an_error(place: str, capsys: pytest.CaptureFixture[str]) -> None:
    """In one line that says what was tried."""
    ask(place, "Lovely")
    for arguments, hint in (
        (["--asset", "moods", "--text", "x"], "No run is known that asked for 'moods'"),
        (["--text", "Never asked"], "neither an answer nor a failure for it (tried "),
        (["--row", '{"text": "x"}'], "lacks 'review'"),
        (["--key", "00ff"], "tried 00ff"),
    ):
        assert main([place, "why", *arguments]) == 2
        output = capsys.readouterr().err
        assert hint in output
        assert output.count("\n") == 1


# -- definitions ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "given"),
    [
        ("Which mood? {review}", {}),
        (Prompt("{% if n > 1 %}{{ review }}{% endif %} {{ n }}", syntax="jinja2", examples=[]), {}),
        (Prompt("{review} of {n}", system="S", examples=[({"review": "r", "n": 1}, {"mood": "good"})]), {}),
        ("{review}", {"clean": ["html", {"truncate": 30}], "sanitize": {"mode": "redact", "rules": ["email"]}}),
    ],
)
def test_key_of_a_row_equals_that_of_a_run(prompt: str | Prompt, given: Mapping[str, Any]) -> None:
    """Computed from the stored definition."""
    spec = ModelSpec("openai/m", base_url="http://h:1/v1", temperature=0, params={"reasoning_effort": "low", "seed": 7})
    task = compile_task(prompt, {"mood": str}, spec, **given)
    row = {"review": "<b>ann@example.com</b> " + 20 * "says so. ", "n": 3}
    (text,) = render(task.prompt, {name: [value] for name, value in row.items()}, [0])
    definition = read_definition(write_definition(task))
    assert keys_of_row(definition, row) == [cache_key(task)(str(text))]
    assert cache_key(task)(str(text)) in keys_of_text(definition, str(text))


@pytest.mark.parametrize(
    "spec",
    [
        ModelSpec("openai/m", base_url="http://me:hidden@h/v1"),
        ModelSpec("openai/m", base_url="http://h/v1?code=hidden"),
        ModelSpec("openai/m", params={"extra_body": {"token": "hidden"}}),
        ModelSpec("openai/m", params={"metadata": ["hidden"]}),
        ModelSpec("openai/m", api_key="hidden", settings={"token": "hidden"}),
    ],
)
def test_a_definition_holds_no_secret(spec: ModelSpec) -> None:
    """If an address or a parameter may be secret, it is not stored, and no key of a text is computed."""
    written = write_definition(compile_task("{a}", "b", spec))
    assert b"hidden" not in written
    if spec.api_key is None:
        with pytest.raises(ConfigError, match="may hold a secret"):
            keys_of_text(read_definition(written), "x")


@pytest.mark.parametrize(
    "given",
    [
        {"clean": [str.strip]},
        {"sanitize": Sanitizer("hash", salt="hidden" * 4)},
        {"sanitize": Sanitizer(patterns={"NAME": "hidden"})},
    ],
)
def test_rows_preprocessed_by_user_code_are_found_by_their_sent_text(given: Mapping[str, Any]) -> None:
    """Functions, salts and the user's patterns are not stored."""
    task = compile_task("{a}", "b", ModelSpec("openai/m"), **given)
    written = write_definition(task)
    assert b"hidden" not in written
    assert keys_of_text(read_definition(written), "x") == [cache_key(task)("x")]
    with pytest.raises(ConfigError, match="--text"):
        keys_of_row(read_definition(written), {"a": "x"})


def test_kept_reply_is_masked_and_shortened() -> None:
    """API keys are masked, a long reply is cut, a short one is unchanged."""
    task = compile_task("{a}", "b", ModelSpec("openai/m", api_key="hidden-key"))
    assert sanitize_reply("fine <b>", task) == "fine <b>"
    key = "".join(("sk-", "proj-", "a1B2" * 8))
    reply = sanitize_reply(f"hidden-key {key}", task)
    assert "hidden" not in reply
    assert "sk-proj" not in reply
    careful = replace(task, prompt=compile_task("{a}", "b", ModelSpec("m"), sanitize="redact").prompt)
    long = sanitize_reply(7000 * "eve@example.com ", careful)
    assert len(long) < 20_010
    assert "eve" not in long
