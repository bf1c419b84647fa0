import asyncio
import pickle
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ondine_core import (
    BatchStrategy,
    BudgetLimit,
    Clock,
    ConfigError,
    MediaOptions,
    ModelSpec,
    Options,
    Origin,
    Policy,
    Price,
    Rates,
    Sanitizer,
    ScriptedModel,
    enrich_sync,
    load_presets,
    open_store,
    preset,
)
from ondine_core.batching.formats import RowFormat
from ondine_core.limits.budget import Budget
from ondine_core.limits.rate_limiter import RateLimiter
from ondine_core.preprocessing.cleaning import truncate
from ondine_core.providers import connect
from ondine_core.providers.context_window import (
    CallCapacity,
    get_context_limit,
    suggest_batch_size,
    validate_batch_size,
)
from ondine_core.providers.pricing import find_price
from ondine_core.telemetry import register_observer


@pytest.mark.parametrize("store", [None, 5, b"answers.db", ["answers.db"]], ids=repr)
def test_invalid_store_is_refused(store: Any) -> None:
    """`Options` raises an error with the value and what is valid, before any run."""
    with pytest.raises(ConfigError, match="give a path, a postgresql:// URL, ':memory:' or an open store") as caught:
        Options(store=store)
    assert f"store={store!r}" in str(caught.value)
    with pytest.raises(ConfigError, match=f"is a {type(store).__name__}. Give the path of a file, or postgresql://"):
        open_store(store)


def test_store_is_a_path_or_an_open_store(tmp_path: Path) -> None:
    """A text, a path and an open store are accepted; cells of a notebook open a store without a `with` statement."""
    with open_store(":memory:") as store:
        assert Options(store=store).store is store
    opened = open_store(":memory:")
    assert Options(store=opened).store is opened
    opened.close()
    assert Options(store=tmp_path / "answers.db").store == tmp_path / "answers.db"
    assert Options(store="answers.db").store == "answers.db"


def test_what_a_run_is_given_can_be_sent_to_another_process() -> None:
    """As `multiprocessing` and task queues do with arguments."""
    options = Options(store="answers.db", max_cost_usd=5, policy=Policy(batch_size=20, keep_replies=True))
    sent, sanitizer = pickle.loads(pickle.dumps((options, Sanitizer(patterns={"CUSTOMER": "C-[0-9]{6}"}))))
    model = ScriptedModel({"": "fine"})
    report = enrich_sync(
        {"text": ["C-123456, 030 1234567"]},
        prompt="About {text}",
        output="out",
        model=model,
        sanitize=sanitizer,
        options=replace(sent, store=":memory:"),
    )
    assert report.column("out") == ["fine"]
    assert [call.messages[-1].content for call in model.calls] == ["About [CUSTOMER], [PHONE]"]
    assert (sent.origin, sent.max_cost_usd, sent.policy.batch_size) == (options.origin, 5, 20)


async def hold_back(**arguments: Any) -> None:
    """Use a rate limiter."""
    with open_store(":memory:") as store:
        limiter = RateLimiter("name", arguments.get("rates", Rates()), arguments.get("store", store))
        await limiter.hold_off(arguments.get("seconds", 0.0))
        await limiter.acquire(1, arguments.get("timeout_s"))


CALLED_WITH: dict[str, tuple[Callable[..., Any], Mapping[str, Any]]] = {
    "Options": (Options, {"on_progress": 5, "observers": 5, "clock": 5, "progress_bar": "no", "lease": 5}),
    "Origin": (lambda **given: Options(origin=Origin(**{"run": "r", **given})), {"run": 5, "partition": None}),
    "Clock": (lambda **given: Options(clock=Clock(**given)), {"now": 5, "rng": 5}),
    "Policy": (Policy, {"strategy": "json"}),
    "RowFormat": (
        lambda **given: RowFormat(**{"name": "own", "ask": "{example}", "write": str, "read": str, **given}),
        {"ask": None, "write": "json"},
    ),
    "BatchStrategy": (partial(BatchStrategy, "own", encode=print, decode=print), {"carried": "x"}),
    "BudgetLimit": (partial(BudgetLimit, Decimal(1)), {"name": ["a"]}),
    "Price": (partial(Price, *[Decimal(0)] * 3), {"beyond": (5,), "per_request": None}),
    "MediaOptions": (MediaOptions, {"root": 5, "pages": 3}),
    "Sanitizer": (Sanitizer, {"rules": 5}),
    "truncate": (partial(truncate, 50), {"mark": 5, "model": b"m"}),
    "ScriptedModel": (partial(ScriptedModel), {"answers": 5, "latency_s": "x", "faults": [5], "sleep": 5}),
    "RateLimiter": (lambda **given: asyncio.run(hold_back(**given)), {"rates": 5, "seconds": "x", "store": "x"}),
    "acquire": (lambda **given: asyncio.run(hold_back(**given)), {"timeout_s": "x"}),
    "Budget": (
        lambda **given: Budget(**{"cap": BudgetLimit(Decimal(1)), "run": "r", "store": None, **given}),
        {"cap": 5, "store": "x"},
    ),
    "suggest_batch_size": (
        lambda **given: suggest_batch_size(**{"capacity": CallCapacity(), "row_tokens": 1, **given}),
        {"capacity": {}, "row_tokens": "x", "max_rows": "x"},
    ),
    "validate_batch_size": (
        lambda **given: validate_batch_size(**{"batch_size": 1, "capacity": CallCapacity(), **given}),
        {"batch_size": "x", "capacity": {}, "row_tokens": "x"},
    ),
    "CallCapacity": (
        lambda **given: validate_batch_size(1, CallCapacity(**given)),
        {"window_tokens": "x", "answer_tokens": 0},
    ),
    "connect": (lambda model: connect(ModelSpec(model)), {"model": 5}),
    "open_store": (partial(open_store, ":memory:"), {"wait_timeout_s": "x"}),
    "preset": (lambda **given: preset(given["name"]), {"name": ["a"]}),
    "load_presets": (load_presets, {"path": 5}),
    "get_context_limit": (get_context_limit, {"model": 5}),
    "find_price": (find_price, {"model": 5}),
    "register_observer": (register_observer, {"name": ["a"]}),
}


@pytest.mark.parametrize(
    ("called", "name", "value"),
    [(called, name, value) for called, (_, given) in CALLED_WITH.items() for name, value in given.items()],
    ids=str,
)
def test_argument_of_another_type_is_a_config_error_with_the_type(called: str, name: str, value: Any) -> None:
    """It is raised where the argument is given, and not by what uses it later."""
    base = {"answers": {"": "ok"}} if called == "ScriptedModel" else {}
    inside = [f"has a {type(item).__name__} in it" for item in value] if isinstance(value, list | tuple) else []
    expected = "|".join([type(value).__name__, re.escape(repr(value)), *inside])
    with pytest.raises(ConfigError, match=expected) as caught:
        CALLED_WITH[called][0](**{**base, name: value})
    assert "object" not in str(caught.value)


@pytest.mark.parametrize("durability", ["disk", "", None])
def test_invalid_durability_is_refused(durability: Any) -> None:
    """The message lists the valid values."""
    with pytest.raises(ConfigError, match="must be 'process' or 'power'"):
        Options(durability=durability)


@pytest.mark.parametrize("switch", ["keep_replies", "tier_fallback", "cancel_on_terminate"])
def test_a_switch_is_no_text(switch: str) -> None:
    """Such as one from a variable: "false" would turn it on."""
    with pytest.raises(ConfigError, match=f"{switch} of Policy is a str; give True or False"):
        Policy(**{switch: "false"})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"batch_size": "20"}, "batch_size='20' must be a whole number of at least 1, or 'auto'"),
        ({"batch_size": "Auto"}, "batch_size='Auto' must be"),
        ({"max_concurrency": 1.5}, "max_concurrency=1.5 must be a whole number of at least 1"),
        ({"max_repairs": -1}, "max_repairs=-1 must be a whole number of at least 0"),
        ({"batch_wait_s": "600"}, "batch_wait_s='600' must be a number of seconds"),
        ({"answer_by": "06:00"}, "answer_by='06:00' must be a moment in seconds since the epoch"),
        ({"reuse_since": None}, "reuse_since=None must be a moment"),
        ({"context_window": "8k"}, "context_window='8k' must be a whole number of tokens"),
        ({"retry": 3}, r"retry of Policy is a int; give RetryPolicy\(...\)"),
        ({"calibration": 30}, r"calibration of Policy is a int; give CalibrationPlan\(...\) or None"),
    ],
)
def test_a_number_of_another_type_is_an_error_in_words(wrong: dict[str, Any], message: str) -> None:
    """When the policy is created; numbers of NumPy are numbers."""
    assert Policy(batch_size=np.int64(20), batch_wait_s=np.float32(5)).batch_size == 20  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=message):
        Policy(**wrong)


@pytest.mark.parametrize(
    ("fallbacks", "message"),
    [
        ("openai/gpt-4o-mini", r"is a str; give a list, each item ModelSpec\(...\)"),
        (iter(()), r"is a tuple_iterator; give a list"),
        (["openai/gpt-4o-mini"], r"has a str in it; each item must be ModelSpec\(...\)"),
    ],
)
def test_fallbacks_by_name_are_an_error_in_words(fallbacks: Any, message: str) -> None:
    """They need the same key and bounds as any model."""
    with pytest.raises(ConfigError, match=f"fallbacks of Options {message}"):
        Options(fallbacks=fallbacks)


def test_fields_of_a_function_are_its_own() -> None:
    """One that is a dataclass may have any values, and annotations that exist for a type checker only."""

    @dataclass
    class Recorder:
        seen: "OnlyForTypeCheckers"  # type: ignore[name-defined]  # noqa: F821

        def __call__(self, _: str) -> None: ...

    recorder = Recorder([])
    assert Options(on_warning=recorder, on_wait=Recorder).on_warning is recorder


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"max_cost_usd": "five"}, "max_cost_usd='five' is not a number of USD"),
        ({"max_cost_usd": -1}, "max_cost_usd='-1' must be more than 0"),
        ({"rates": 60}, r"rates of Options is a int; give Rates\(...\)"),
        ({"price": 0.15}, r"price of Options is a float; give Price\(...\) or None"),
        ({"policy": {"batch_size": 20}}, r"policy of Options is a dict; give Policy\(...\)"),
        ({"caps": (5,)}, r"caps of Options has a int in it; each item must be BudgetLimit\(...\)"),
        ({"lease_ttl_s": 0}, "lease_ttl_s=0 must be a number of seconds, more than 0"),
        ({"lease_ttl_s": "30"}, "lease_ttl_s='30' must be a number of seconds"),
    ],
)
def test_option_of_another_type_is_an_error_in_words(wrong: dict[str, Any], message: str) -> None:
    """When the options are created."""
    with pytest.raises(ConfigError, match=message):
        Options(**wrong)
