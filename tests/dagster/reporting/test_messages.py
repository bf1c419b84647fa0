"""The messages that a dry run shows."""

from __future__ import annotations

from typing import Any

import dagster as dg
import pandas as pd
import pytest

from ondine_core.types.values import Call, Message
from ondine_dagster import LLMAssetConfig, Prompt, ScriptedModel, llm_asset
from ondine_dagster.reporting.messages import shown_messages
from tests.support import instances

SHOWN_IN_PLACE = 999


def dry_run(**arguments: Any) -> str:
    @llm_asset(prompt=Prompt("Which mood?\n{review}", system="Be brief."), output={"mood": str}, **arguments)
    def moods() -> pd.DataFrame:
        return pd.DataFrame({"review": ["Fine,  says ann@example.com", "Bad", "So so", "The fourth"]})

    llm = ScriptedModel({"": {"mood": "good"}}, max_batch_size=None)
    config = dg.RunConfig(ops={"moods": LLMAssetConfig(dry_run=True)})
    with instances.ephemeral() as instance:
        result = dg.materialize([moods], resources={"llm": llm}, instance=instance, run_config=config)
    assert not llm.calls
    (event,) = [event for event in result.all_events if event.is_asset_observation]
    return str(event.asset_observation_data.asset_observation.metadata["ondine/messages"].value)


def test_a_dry_run_shows_what_would_be_sent() -> None:
    """The system message once, then a message for each of the first rows, cleaned and sanitized."""
    shown = dry_run(clean=["whitespace"], sanitize="placeholder")
    assert shown.count("**system**\n~~~text\nBe brief.\n~~~") == 1
    assert shown.count("**user**") == 3
    assert "~~~text\nWhich mood?\nFine, says <EMAIL_1>\n~~~" in shown
    assert "ann@" not in shown
    assert "fourth" not in shown


def test_a_dry_run_of_batches_shows_one_call() -> None:
    """The batch's instructions, and its first rows with their ids."""
    shown = dry_run(batch_size=4)
    assert shown.count("**user**") == 1
    for text in ("Do for each item", "Bad", "So so"):
        assert text in shown


@pytest.mark.parametrize("long", [0, 1, 2])
def test_messages_are_short_enough_to_be_shown(long: int) -> None:
    """A long one is cut in the middle, a short one complete; no text can end its code block."""
    texts = ["Be brief.", "First ~~~~ row", "Second row"]
    texts[long] = f"Begin {2000 * 'x'} end"
    head = [Message("system", texts[0]), *(Message("user", f"example {n}") for n in range(8))]
    calls = [Call((*head, Message("user", text))) for text in texts[1:]]
    shown = shown_messages(calls)
    assert len(shown) <= SHOWN_IN_PLACE
    assert "Begin xxx" in shown
    assert "x end" in shown
    assert "(and 6 messages of examples)" in shown
    for text in texts[:long] + texts[long + 1 :]:
        assert f"text\n{text}\n~~~" in shown
    if long != 1:
        assert "~~~~~text\nFirst ~~~~ row\n~~~~~" in shown
    assert len(shown_messages([Call((Message("user", 5000 * "y"),))])) > SHOWN_IN_PLACE - 100
    assert not shown_messages([])
