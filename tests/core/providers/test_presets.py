from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import FrozenInstanceError
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

import ondine_core.presets
from ondine_core.errors import ConfigError
from ondine_core.presets import PRESETS, load_presets, openai_compatible, preset
from ondine_core.presets.__main__ import main
from ondine_core.presets.catalog import FIELDS, WITHDRAWN
from ondine_core.presets.cost import Workload, cost_of
from ondine_core.providers.context_window import get_context_limit
from ondine_core.providers.pricing import Price, find_entry, find_price
from ondine_core.types.values import ModelSpec

HOSTED = ("openai", "anthropic", "groq", "together_ai", "azure")
KEY = "sk-sentinel-0123456789abcdef0123"


# -- the data ------------------------------------------------------------------------------------------------------


def test_no_preset_holds_a_key() -> None:
    """Presets have the fields of a model only; their files have nothing like a key or a price."""
    for spec in PRESETS.values():
        assert spec == ModelSpec(spec.model)
        assert spec.api_key is None
    for file in Path(ondine_core.presets.__file__).parent.glob("*.py"):
        assert not re.search(r"(?:sk|gsk)[-_]\w{16}|\d\.\d+e-\d|cost_per_token", file.read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", [name for name, spec in PRESETS.items() if spec.model.split("/")[0] in HOSTED])
def test_a_hosted_preset_is_in_the_price_file(name: str) -> None:
    """Price and window of every hosted preset are known; of a withdrawn one those of its successor."""
    if name in WITHDRAWN:
        assert find_entry(PRESETS[name].model) is None, f"{name} is back: take it out of WITHDRAWN"
    model = PRESETS[WITHDRAWN.get(name, name)].model
    price = find_price(model)
    assert price is not None
    assert price.output >= price.input > 0
    assert (get_context_limit(model) or 0) > 100_000


@pytest.mark.parametrize(
    "model",
    [
        r"openai/gpt-4o-mini",
        r"openai/gpt-4o",
        r"anthropic/claude-sonnet-4-\d{8}",
        r"groq/llama-.*70b.*",
        r"together_ai/.*70B.*",
        r"together_ai/.*8B.*",
        r"ollama/llama.*70b",
        r"ollama/llama.*8b",
        r"hosted_vllm/.*",
        r"azure/.*",
        r"llama_cpp/gemma.*",
        r"mlx/.*[Qq]wen.*",
    ],
)
def test_every_provider_has_a_preset(model: str) -> None:
    """There is a preset for a well-known model of each provider."""
    assert any(re.fullmatch(model, spec.model) for spec in PRESETS.values())


def test_presets_are_immutable() -> None:
    """A change in one part of a program does not affect another."""
    with pytest.raises(TypeError):
        PRESETS["gpt-4o"] = ModelSpec("openai/other")  # type: ignore[index]
    with pytest.raises(FrozenInstanceError):
        PRESETS["gpt-4o"].model = "openai/other"  # type: ignore[misc]
    mine = preset("gpt-4o")
    assert isinstance(mine.params, dict)
    mine.params["top_p"] = 0.5
    assert preset("gpt-4o").params == {}
    params = {"logit_bias": {"1": 1}}
    theirs = preset("gpt-4o", params=params)
    params["logit_bias"]["1"] = 2
    assert theirs.params == {"logit_bias": {"1": 1}}


@pytest.mark.parametrize("field", FIELDS)
def test_every_field_is_checked(field: str) -> None:
    """A value of another type is refused with the field's name, so a new field of `ModelSpec` must be checked."""
    with pytest.raises(ConfigError, match=f"preset 'gpt-4o': {field}"):
        preset("gpt-4o", **{field: object()})


# -- by name -------------------------------------------------------------------------------------------------------


def test_a_preset_with_changes() -> None:
    """Any field can be overridden where the preset is used."""
    assert preset("gpt-4o-mini") == ModelSpec("openai/gpt-4o-mini")
    changed = preset("azure-gpt-4o", model="azure/our-deployment", api_key=KEY, temperature=0, params={"seed": 7})
    assert changed == ModelSpec("azure/our-deployment", api_key=KEY, temperature=0.0, params={"seed": 7})


@pytest.mark.parametrize(
    ("name", "meant"),
    [("gpt4o-mini", "gpt-4o-mini"), ("claude-sonnet-5", "claude-sonnet-5-5"), ("ollama-llama-70b", "llama-3.3-70b")],
)
def test_unknown_preset_gets_suggestions(name: str, meant: str) -> None:
    """The error has the nearest names and the list of all."""
    with pytest.raises(ConfigError, match=f"{re.escape(repr(name))}. Did you mean .*{re.escape(meant)}") as caught:
        preset(name)
    assert ", ".join(PRESETS) in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"temprature": 0}, "no field 'temprature'. Did you mean 'temperature'"),
        ({"nonsense": 0}, "no field 'nonsense'. The fields are model,"),
        ({"temperature": -1}, "temperature=-1 must be a number of 0 or more"),
        ({"temperature": float("nan")}, "temperature=nan must be"),
        ({"temperature": "0"}, "temperature='0' must be"),
        ({"timeout_s": 0}, "timeout_s=0 must be a number of seconds, more than 0"),
        ({"max_output_tokens": 0}, "max_output_tokens=0 must be a whole number of at least 1"),
        ({"max_output_tokens": 10.0}, "max_output_tokens=10.0 must be"),
        ({"model": "gpt-4o"}, "model='gpt-4o' is not valid: write provider/name, as in 'openai/gpt-4o'"),
        ({"model": None}, "model=None is not valid: write provider/name"),
        ({"base_url": "localhost:8000"}, "base_url='localhost:8000' is not an address"),
        ({"base_url": "http://[::1"}, "base_url='http://[::1' is not an address"),
        ({"provider_name": ""}, "provider_name is empty"),
        ({"params": [1]}, "params is a list; it must be a mapping of names to values"),
        ({"params": {1: 1}}, "params is a dict; it must be a mapping of names to values"),
    ],
)
def test_override_is_validated(changes: dict[str, Any], message: str) -> None:
    """The error names the preset, the field and the value."""
    with pytest.raises(ConfigError, match=re.escape(message)) as caught:
        preset("gpt-4o", **changes)
    assert str(caught.value).startswith("preset 'gpt-4o': ")


@pytest.mark.parametrize(
    "changes",
    [
        {"api_key": [KEY]},
        {"base_url": f"https://me:{KEY}@example.com/v1"},
        {"params": KEY},
        {"settings": [KEY]},
        {"api_key": KEY, "temperature": -1},
    ],
)
def test_refused_override_shows_no_secret(changes: dict[str, Any]) -> None:
    """A value that may be a key is quoted neither in the message nor in its causes."""
    with pytest.raises(ConfigError) as caught:
        preset("gpt-4o", **changes)
    assert KEY not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


def test_preset_for_a_self_hosted_server() -> None:
    """Any server of OpenAI's dialect has an address, a model name, and a name for reports."""
    assert openai_compatible(
        "http://127.0.0.1:8000/v1", "meta-llama/Llama-3.3-70B", "house", temperature=0
    ) == ModelSpec(
        "openai_compatible/meta-llama/Llama-3.3-70B",
        base_url="http://127.0.0.1:8000/v1",
        provider_name="house",
        temperature=0,
    )
    with pytest.raises(ConfigError, match=r"base_url='127\.0\.0\.1:8000' is not an address"):
        openai_compatible("127.0.0.1:8000", "m")
    with pytest.raises(ConfigError, match="no field 'temp'"):
        openai_compatible("http://127.0.0.1:8000/v1", "m", temp=0)


# -- a user's file -------------------------------------------------------------------------------------------------


def write(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "presets.yaml"
    file.write_text(text, encoding="utf-8")
    return file


HOUSE = """
house:
  model: openai_compatible/llama-3.3-70b
  base_url: https://llm.example.com/v1
  provider_name: house
  temperature: 0
  timeout_s: 120
  max_output_tokens: 300
  params: {top_p: 0.9, max_tokens: 5, prompt_cache_key: reviews}
  settings: {structured_output: json_object}
cheap:
  model: openai/gpt-6-luna
"""


def test_presets_from_a_file(tmp_path: Path) -> None:
    """They are used like built-in ones: by name, with overrides, immutable."""
    presets = load_presets(write(tmp_path, HOUSE))
    assert presets == {
        "house": ModelSpec(
            "openai_compatible/llama-3.3-70b",
            base_url="https://llm.example.com/v1",
            provider_name="house",
            temperature=0,
            timeout_s=120,
            max_output_tokens=300,
            params={"top_p": 0.9, "max_tokens": 5, "prompt_cache_key": "reviews"},
            settings={"structured_output": "json_object"},
        ),
        "cheap": ModelSpec("openai/gpt-6-luna"),
    }
    assert preset("house", presets, temperature=1).temperature == 1
    with pytest.raises(ConfigError, match=r"'hous'\. Did you mean 'house'"):
        preset("hous", presets)
    with pytest.raises(TypeError):
        presets["cheap"] = presets["house"]  # type: ignore[index]


@pytest.mark.parametrize("text", ["", "# nothing yet\n", "{}\n"])
def test_empty_file_has_no_presets(tmp_path: Path, text: str) -> None:
    """It is not an error."""
    assert load_presets(str(write(tmp_path, text))) == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- house\n", "expected names of presets"),
        ("house: openai/gpt-4o\n", "preset 'house': expected the fields of a model"),
        ("house:\n", "preset 'house': expected the fields of a model"),
        ("4: {model: openai/gpt-4o}\n", "preset 4: the name is not a text"),
        ("house: {temperature: 0}\n", "preset 'house': model is missing"),
        ("house: {model: gpt-4o}\n", "preset 'house': model='gpt-4o' is not valid"),
        (
            "house: {model: openai/gpt-4o, temprature: 0}\n",
            "'house': there is no field 'temprature'. Did you mean 'temp",
        ),
        ("house: {model: openai/gpt-4o, 1: 0}\n", "preset 'house': there is no field '1'"),
        (
            "house: {model: openai/gpt-4o, timeout_s: 1e3}\n",
            "preset 'house': timeout_s='1e3' must be a number of seconds",
        ),
        ("house: {model: a/b}\nother: {model: a/b}\nhouse: {model: a/c}\n", "preset 'house' is given twice"),
        ("house:\n  model: a/b\n  model: a/c\n", "preset 'house': field 'model' is given twice"),
        ("house: {model: a/b\nother: 1\n", "is not YAML: expected ',' or '}', but got ':' in line 2"),
        ("house: !!python/object/apply:os.system ['true']\n", "is not YAML: could not determine a constructor"),
        ("house: &h\n  model: a/b\n  params: *h\n", "preset 'house': an alias (*name) refers to what contains it"),
        (f"house: {'[' * 2000}{']' * 2000}\n", "is nested too deeply"),
    ],
)
def test_error_in_a_file_names_file_preset_and_field(tmp_path: Path, text: str, message: str) -> None:
    """Nothing in a file is executed, and nothing is dropped."""
    file = write(tmp_path, text)
    with pytest.raises(ConfigError, match=re.escape(message)) as caught:
        load_presets(file)
    assert str(caught.value).startswith(repr(str(file)))


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("api_key: {}", "api_key"),
        ("apiKey: {}", "apiKey"),
        ("api_key:", "api_key"),
        ("settings: {{ad_token: {}}}", "settings.ad_token"),
        ("params: {{extra_headers: {{Authorization: Bearer x}}}}", "params.extra_headers.Authorization"),
        ("params: {{extra: [a, Bearer {}]}}", "params.extra.1"),
        ("provider_name: {}", "provider_name"),
    ],
)
def test_a_key_in_a_file_is_refused(tmp_path: Path, text: str, field: str) -> None:
    """Under whatever name, without being shown, with what to do instead."""
    with pytest.raises(ConfigError, match=f"preset 'house': {re.escape(field)} holds a key.*variable") as caught:
        load_presets(write(tmp_path, f"house:\n  model: openai/gpt-4o\n  {text.format(KEY)}\n"))
    assert KEY not in str(caught.value)


def test_parse_error_shows_the_line_number_only(tmp_path: Path) -> None:
    """The line may contain a key."""
    with pytest.raises(ConfigError, match="in line 3") as caught:
        load_presets(write(tmp_path, f"house:\n  api_key: '{KEY}\n"))
    assert KEY not in str(caught.value)
    assert caught.value.__suppress_context__


def test_unreadable_file_is_an_error(tmp_path: Path) -> None:
    """Missing, a folder, or in another encoding: the message has the path and the reason."""
    for path, reason in ((tmp_path / "missing.yaml", "No such file"), (tmp_path, "Is a directory")):
        with pytest.raises(ConfigError, match=f"{re.escape(str(path))}.*{reason}"):
            load_presets(path)
    latin = tmp_path / "latin.yaml"
    latin.write_bytes("höuse: {}".encode("latin-1"))
    with pytest.raises(ConfigError, match="not UTF-8"):
        load_presets(latin)


# -- the listing ---------------------------------------------------------------------------------------------------


def test_the_listing_has_prices_and_windows(capsys: pytest.CaptureFixture[str]) -> None:
    """One aligned line for each preset; what the price file lacks is unknown, never zero."""
    assert main([]) == 0
    header, *lines = capsys.readouterr().out.splitlines()
    rows = {line.split()[0]: line for line in lines[: len(PRESETS)]}
    assert list(rows) == list(PRESETS)
    row = "gpt-4o-mini openai/gpt-4o-mini 0.15 0.075 0.6 128,000 16,384 2027-01-14"
    assert rows["gpt-4o-mini"].split() == row.split()
    assert rows["gemma-3-270m"].split()[2:5] == ["0", "0", "0"]
    assert rows["vllm-llama-3.3-70b"].split()[2:] == ["unknown"] * 5
    assert rows["groq-llama-3.3-70b"].endswith("withdrawn; see groq-gpt-oss-120b")
    assert "0.1*" in rows["gpt-6-luna"].split()
    ends = {header.index(name) + len(name) for name in ("input", "output", "window")}
    assert all(row[end - 1] != " " and row[end] == " " for row in rows.values() for end in ends)


def test_the_listing_as_json() -> None:
    """`--json` gives numbers as numbers and unknown values as null."""
    command = [sys.executable, "-W", "error", "-m", "ondine_core.presets", "--json"]
    listed = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    by_name = {entry.pop("preset"): entry for entry in listed}
    assert list(by_name) == list(PRESETS)
    assert by_name["azure-gpt-4o-mini"] == {
        "model": "azure/gpt-4o-mini",
        "input_usd_per_1m_tokens": 0.15,
        "cached_input_usd_per_1m_tokens": 0.075,
        "output_usd_per_1m_tokens": 0.6,
        "long_prompts_cost_more": False,
        "context_window_tokens": 128_000,
        "max_output_tokens": 16_384,
        "retired_on": "2027-04-14",
        "withdrawn_for": None,
    }
    assert by_name["ollama-llama-3.1-8b"]["input_usd_per_1m_tokens"] is None


def test_the_listing_of_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A team's own presets are listed the same way; an error in them is one line without a traceback."""
    assert main([str(write(tmp_path, HOUSE))]) == 0
    listed = capsys.readouterr().out
    assert "llm.example.com" not in listed
    assert [line.split()[0] for line in listed.splitlines()[1:3]] == ["house", "cheap"]
    assert main([str(tmp_path / "missing.yaml")]) == 2
    assert capsys.readouterr().err.startswith("error: The presets in ")


# -- cost of many rows ---------------------------------------------------------------------------------------------


PRICE = Price(Decimal("1e-6"), Decimal("5e-6"), Decimal("1e-7"), cache_write=Decimal("1.25e-6"))


@pytest.mark.parametrize(
    ("rows", "batch_size", "cached", "usd"),
    [
        # 10 calls of 2,000 + 55 tokens, answers of 10.
        (10, 1, False, "0.02105"),
        # The first call writes 2,000 tokens to the cache, nine read them.
        (10, 1, True, "0.00535"),
        # 5 calls of 2,060 + 2 x 63 tokens, answers of 2 x 16.
        (10, 2, False, "0.01173"),
        (10, 2, True, "0.004829"),
        # The last call has one row.
        (3, 2, False, "0.004549"),
    ],
)
def test_cost_of_rows_is_the_sum_of_their_calls(rows: int, batch_size: int, usd: str, *, cached: bool) -> None:
    """Checked by hand: input, cached input, cache writes, output, and the overhead of a batch."""
    assert cost_of(Workload(rows, 55, 10, 2000), PRICE, batch_size, cached=cached) == Decimal(usd)


def test_costs_are_compared_by_model_tier_cache_and_rows_a_call(capsys: pytest.CaptureFixture[str]) -> None:
    """As the guide's command shows it; a prefix too short for a cache has no figure, and no figure is 0."""
    figures = ["--rows", "1000000", "--input-tokens", "55", "--output-tokens", "10", "--prefix-tokens", "1500"]
    assert main(["cost", *figures, "--json"]) == 0
    lines = {(line["model"], line["tier"]): line["usd"] for line in json.loads(capsys.readouterr().out)}
    alone, together = lines["openai/gpt-5-mini", "standard"]
    assert alone["plain"] == pytest.approx(1e6 * (1555 * 2.5e-7 + 10 * 2e-6))
    assert alone["cached"] == pytest.approx(1e6 * (1500 * 2.5e-8 + 55 * 2.5e-7 + 10 * 2e-6), rel=1e-4)
    assert together["cached"] < together["plain"] < alone["cached"] < alone["plain"]
    assert lines["openai/gpt-5-mini", "flex"][0]["plain"] == pytest.approx(alone["plain"] / 2)
    assert not any(model.startswith(("mlx/", "llama_cpp/", "ollama/")) for model, _ in lines)
    assert main(["cost", "--prefix-tokens", "400"]) == 0
    table = capsys.readouterr().out
    row = next(line for line in table.splitlines() if line.split()[:2] == ["openai/gpt-5-mini", "standard"])
    assert row.split()[1:] == ["standard", "133.75", "-", row.split()[4], "-"]


@pytest.mark.parametrize("wrong", [["--rows", "0"], ["--rows", "many"], ["--unknown"]])
def test_invalid_workload_is_an_error(wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """It names the argument."""
    with pytest.raises(SystemExit):
        main(["cost", *wrong])
    assert wrong[0] in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["--json"], ["cost"]])
def test_output_that_cannot_be_written_is_one_line(arguments: list[str]) -> None:
    """A full disk is an error; a reader that left, such as `head`, or an output that is closed is none."""
    command = [sys.executable, "-m", "ondine_core.presets", *arguments]
    with Path("/dev/full").open("wb") as full:
        result = subprocess.run(command, check=False, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60)
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    assert result.stderr.startswith("error: [Errno 28]")
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as left:
        result = subprocess.run(command, check=False, stdout=left, stderr=subprocess.PIPE, text=True, timeout=60)
    assert (result.returncode, result.stderr) == (0, "")
    closed = f"exec {shlex.join(command)} >&-"
    result = subprocess.run(closed, shell=True, check=False, stderr=subprocess.PIPE, text=True, timeout=60)  # noqa: S602
    assert (result.returncode, result.stderr) == (0, "")
