from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import FrozenInstanceError, fields
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

import ondine_core.presets
from ondine_core.errors import ConfigError
from ondine_core.presets import PRESETS, load_presets, openai_compatible, preset
from ondine_core.presets.__main__ import main
from ondine_core.presets.catalog import FIELDS, WITHDRAWN, _Spec
from ondine_core.presets.cost import Workload, cost_of
from ondine_core.providers.context_window import get_context_limit
from ondine_core.providers.pricing import Price, find_entry, find_price
from ondine_core.types.values import ModelSpec

HOSTED = ("openai", "anthropic", "groq", "together_ai", "azure")
KEY = "sk-sentinel-0123456789abcdef0123"


# -- the data ------------------------------------------------------------------------------------------------------


def test_no_preset_holds_a_key() -> None:
    """A preset is a model and nothing else; nor is there anything like a key, or a price, in the files they are in."""
    for spec in PRESETS.values():
        assert spec == ModelSpec(spec.model)
        assert spec.api_key is None
    for file in Path(ondine_core.presets.__file__).parent.glob("*.py"):
        assert not re.search(r"(?:sk|gsk)[-_]\w{16}|\d\.\d+e-\d|cost_per_token", file.read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", [name for name, spec in PRESETS.items() if spec.model.split("/")[0] in HOSTED])
def test_a_hosted_preset_is_in_the_price_file(name: str) -> None:
    """Price and window of every hosted preset are known; if it was withdrawn, its successor's are."""
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
    """Whoever looks for a well-known model of any provider finds one."""
    assert any(re.fullmatch(model, spec.model) for spec in PRESETS.values())


def test_presets_cannot_be_changed() -> None:
    """What one part of a program does to a preset, no other part sees."""
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


def test_every_field_of_a_model_is_checked() -> None:
    """A field that is added to `ModelSpec` is known here, too, with the same default."""
    defaults = {name: field.get_default(call_default_factory=True) for name, field in _Spec.model_fields.items()}
    spec = ModelSpec("m/m")
    assert {**defaults, "model": "m/m"} == {field.name: getattr(spec, field.name) for field in fields(spec)}
    assert tuple(defaults) == FIELDS


# -- by name -------------------------------------------------------------------------------------------------------


def test_a_preset_with_changes() -> None:
    """Any field can be set where the preset is taken."""
    assert preset("gpt-4o-mini") == ModelSpec("openai/gpt-4o-mini")
    changed = preset("azure-gpt-4o", model="azure/our-deployment", api_key=KEY, temperature=0, params={"seed": 7})
    assert changed == ModelSpec("azure/our-deployment", api_key=KEY, temperature=0.0, params={"seed": 7})


@pytest.mark.parametrize(
    ("name", "meant"),
    [("gpt4o-mini", "gpt-4o-mini"), ("claude-sonnet-5", "claude-sonnet-5-5"), ("ollama-llama-70b", "llama-3.3-70b")],
)
def test_an_unknown_preset_is_answered_with_what_was_meant(name: str, meant: str) -> None:
    """A name that is not there is refused with the nearest ones and the list of all."""
    with pytest.raises(ConfigError, match=f"{re.escape(repr(name))}; did you mean .*{re.escape(meant)}") as caught:
        preset(name)
    assert ", ".join(PRESETS) in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"temprature": 0}, "no field 'temprature'; did you mean 'temperature'"),
        ({"nonsense": 0}, "no field 'nonsense'. The fields are model,"),
        ({"temperature": -1}, "temperature=-1 is not valid: Input should be greater than or equal to 0"),
        ({"temperature": float("nan")}, "temperature=nan is not valid"),
        ({"temperature": "0"}, "temperature='0' is not valid"),
        ({"timeout_s": 0}, "timeout_s=0 is not valid"),
        ({"max_output_tokens": 0}, "max_output_tokens=0 is not valid"),
        ({"max_output_tokens": 10.0}, "max_output_tokens=10.0 is not valid"),
        ({"model": "gpt-4o"}, "model='gpt-4o' is not valid: write provider/name, as in 'openai/gpt-4o'"),
        ({"model": None}, "model=None is not valid"),
        ({"base_url": "localhost:8000"}, "base_url is not valid: it is no address"),
        ({"base_url": "http://[::1"}, "base_url is not valid"),
        ({"provider_name": ""}, "provider_name='' is not valid"),
        ({"params": [1]}, "params is not valid"),
    ],
)
def test_a_change_is_checked(changes: dict[str, Any], told: str) -> None:
    """A mistake in a change is found where it is made, and told with the preset, the field and the value."""
    with pytest.raises(ConfigError, match=re.escape(told)) as caught:
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
def test_a_refused_change_shows_no_secret(changes: dict[str, Any]) -> None:
    """What may hold a key is not quoted, neither in the message nor in what it was caused by."""
    with pytest.raises(ConfigError) as caught:
        preset("gpt-4o", **changes)
    assert KEY not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


def test_a_server_of_ones_own() -> None:
    """Any server that speaks OpenAI's dialect is an address, a model as it knows it, and a name for reports."""
    assert openai_compatible(
        "http://127.0.0.1:8000/v1", "meta-llama/Llama-3.3-70B", "house", temperature=0
    ) == ModelSpec(
        "openai_compatible/meta-llama/Llama-3.3-70B",
        base_url="http://127.0.0.1:8000/v1",
        provider_name="house",
        temperature=0,
    )
    with pytest.raises(ConfigError, match="base_url is not valid"):
        openai_compatible("127.0.0.1:8000", "m")
    with pytest.raises(ConfigError, match="no field 'temp'"):
        openai_compatible("http://127.0.0.1:8000/v1", "m", temp=0)


# -- a file of one's own -------------------------------------------------------------------------------------------


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
    """A file's presets are like Ondine's: taken by name, changed where they are taken, and no part can be changed."""
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
    with pytest.raises(ConfigError, match="'hous'; did you mean 'house'"):
        preset("hous", presets)
    with pytest.raises(TypeError):
        presets["cheap"] = presets["house"]  # type: ignore[index]


@pytest.mark.parametrize("text", ["", "# nothing yet\n", "{}\n"])
def test_a_file_without_presets_is_one(tmp_path: Path, text: str) -> None:
    """An empty file has no presets, and that is no mistake."""
    assert load_presets(str(write(tmp_path, text))) == {}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("- house\n", "expected names of presets"),
        ("house: openai/gpt-4o\n", "preset 'house': expected the fields of a model"),
        ("house:\n", "preset 'house': expected the fields of a model"),
        ("4: {model: openai/gpt-4o}\n", "preset 4: the name is no text"),
        ("house: {temperature: 0}\n", "preset 'house': model is missing"),
        ("house: {model: gpt-4o}\n", "preset 'house': model='gpt-4o' is not valid"),
        (
            "house: {model: openai/gpt-4o, temprature: 0}\n",
            "'house': there is no field 'temprature'; did you mean 'temp",
        ),
        ("house: {model: openai/gpt-4o, 1: 0}\n", "preset 'house': there is no field '1'"),
        ("house: {model: openai/gpt-4o, timeout_s: 1e3}\n", "preset 'house': timeout_s='1e3' is not valid"),
        ("house: {model: a/b}\nother: {model: a/b}\nhouse: {model: a/c}\n", "preset 'house' is there twice"),
        ("house:\n  model: a/b\n  model: a/c\n", "preset 'house': field 'model' is there twice"),
        ("house: {model: a/b\nother: 1\n", "is not YAML: expected ',' or '}', but got ':' in line 2"),
        ("house: !!python/object/apply:os.system ['true']\n", "is not YAML: could not determine a constructor"),
    ],
)
def test_a_mistake_in_a_file_is_named_with_its_place(tmp_path: Path, text: str, told: str) -> None:
    """Every message names the file, the preset and the field; nothing in a file is executed, and nothing is dropped."""
    file = write(tmp_path, text)
    with pytest.raises(ConfigError, match=re.escape(told)) as caught:
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
    """A key in a file is refused under whatever name, without being shown, and with what to do in place of it."""
    with pytest.raises(ConfigError, match=f"preset 'house': {re.escape(field)} holds a key.*variable") as caught:
        load_presets(write(tmp_path, f"house:\n  model: openai/gpt-4o\n  {text.format(KEY)}\n"))
    assert KEY not in str(caught.value)


def test_a_broken_line_with_a_key_is_not_shown(tmp_path: Path) -> None:
    """Where the parser stumbles over the line of a key, its number is told and not what is in it."""
    with pytest.raises(ConfigError, match="in line 3") as caught:
        load_presets(write(tmp_path, f"house:\n  api_key: '{KEY}\n"))
    assert KEY not in str(caught.value)
    assert caught.value.__suppress_context__


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    """No such file, a folder, or another encoding: the message has the path and the reason."""
    for path, reason in ((tmp_path / "missing.yaml", "No such file"), (tmp_path, "Is a directory")):
        with pytest.raises(ConfigError, match=f"{re.escape(str(path))}.*{reason}"):
            load_presets(path)
    latin = tmp_path / "latin.yaml"
    latin.write_bytes("höuse: {}".encode("latin-1"))
    with pytest.raises(ConfigError, match="not UTF-8"):
        load_presets(latin)


# -- the listing ---------------------------------------------------------------------------------------------------


def test_the_listing_has_prices_and_windows(capsys: pytest.CaptureFixture[str]) -> None:
    """Every preset is a line, its columns aligned; what the price file does not say is unknown, and never a zero."""
    assert main([]) == 0
    header, *lines = capsys.readouterr().out.splitlines()
    rows = {line.split()[0]: line for line in lines[: len(PRESETS)]}
    assert list(rows) == list(PRESETS)
    assert rows["gpt-4o-mini"].split() == "gpt-4o-mini openai/gpt-4o-mini 0.15 0.075 0.6 128,000 16,384".split()
    assert rows["gemma-3-270m"].split()[2:5] == ["0", "0", "0"]
    assert rows["vllm-llama-3.3-70b"].split()[2:] == ["unknown"] * 5
    assert rows["groq-llama-3.3-70b"].endswith("withdrawn; see groq-gpt-oss-120b")
    assert "0.1*" in rows["gpt-6-luna"].split()
    ends = {header.index(name) + len(name) for name in ("input", "output", "window")}
    assert all(row[end - 1] != " " and row[end] == " " for row in rows.values() for end in ends)


def test_the_listing_as_json() -> None:
    """`python -m ondine_core.presets --json` is for programs: numbers are numbers, and what is unknown is null."""
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
    """A team's own presets are listed alike; a mistake in them is one line, and no traceback."""
    assert main([str(write(tmp_path, HOUSE))]) == 0
    listed = capsys.readouterr().out
    assert "llm.example.com" not in listed
    assert [line.split()[0] for line in listed.splitlines()[1:3]] == ["house", "cheap"]
    assert main([str(tmp_path / "missing.yaml")]) == 2
    assert capsys.readouterr().err.startswith("error: The presets in ")


# -- what many rows cost -------------------------------------------------------------------------------------------


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
def test_what_rows_cost_is_the_sum_of_their_calls(rows: int, batch_size: int, usd: str, *, cached: bool) -> None:
    """By hand: input, cached input, writing to the cache, output, and what a batch adds."""
    assert cost_of(Workload(rows, 55, 10, 2000), PRICE, batch_size, cached=cached) == Decimal(usd)


def test_costs_are_compared_by_model_tier_cache_and_rows_a_call(capsys: pytest.CaptureFixture[str]) -> None:
    """The command of the guide; a prefix that is too short for a cache has no figure, and no figure is 0."""
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
def test_a_workload_that_is_none_is_an_error(wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """With the argument."""
    with pytest.raises(SystemExit):
        main(["cost", *wrong])
    assert wrong[0] in capsys.readouterr().err
