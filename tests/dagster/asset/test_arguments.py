"""Mistakes in the arguments and the function of `llm_asset` and `build_llm_asset`: errors when definitions load."""

from __future__ import annotations

import functools
import inspect
from decimal import Decimal
from typing import Any

import dagster as dg
import numpy as np
import pandas as pd
import pytest

from ondine_core.errors import ConfigError
from ondine_core.providers.scripted import ScriptedModel
from ondine_core.types.values import ModelSpec
from ondine_dagster import ErrorRateCheck, GoldenCheck, LLMResource, build_llm_asset, llm_asset
from ondine_dagster.run.arguments import Arguments, BuildArguments, LLMAssetArguments
from tests.support import instances

PROMPT = "Classify this review.\nReview: {review}"


@dg.asset
def reviews() -> pd.DataFrame:
    """The rows of most tests."""
    return pd.DataFrame({"review": ["good", "bad"]})


@dg.asset
def labelled() -> pd.DataFrame:
    """Rows with labels that the scripted model meets."""
    return pd.DataFrame({"review": ["good"], "mood": ["fine"]})


def run(*assets: Any, llm: Any = None, **resources: Any) -> dg.ExecuteInProcessResult:
    return instances.materialize(list(assets), resources={"llm": llm or ScriptedModel({"": "fine"}), **resources})


def build(**arguments: Any) -> dg.AssetsDefinition:
    return build_llm_asset(**{"name": "moods", "upstream": "reviews", "prompt": PROMPT, "output": "mood", **arguments})


# -- names of columns ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"output": {"moods_error": str}}, "output column 'moods_error' has the name .* rename the output column"),
        ({"output": "moods_error", "on_row_error": "drop"}, "output column 'moods_error'"),
        ({"model_column": "mood"}, "model_column='mood' is also an output column"),
        ({"model_column": "moods_error"}, "model_column='moods_error' is also the column that says why"),
        ({"model_column": "review"}, "model_column='review' is also a column the prompt reads"),
        ({"prompt": "Why {moods_error}?"}, "prompt reads column 'moods_error'"),
    ],
)
def test_no_column_overwrites_another(arguments: dict[str, Any], message: str) -> None:
    """A paid answer is not lost to the error column or the column with the model's name."""
    with pytest.raises(ConfigError, match=message):
        build(**arguments)
    shared = {"prompt": PROMPT, "output": "mood", **arguments}
    with pytest.raises(ConfigError, match=message):

        @llm_asset(**shared)
        def moods(reviews: pd.DataFrame) -> pd.DataFrame:
            return reviews


# -- values --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "values", "valid"),
    [
        ("prompt", [None, 5, ["{x}"]], "a text"),
        ("batch_size", ["20", "Auto", None, 2.5, True, 0, -1], "at least 1, or 'auto'"),
        ("calibrate", [True, 0, 2.5, "50"], "at least 1"),
        ("min_agreement", ["all", None, 2, True], "from 0 to 1"),
        ("on_disagreement", ["ask", None, []], "'lower', 'stop'"),
        ("max_cost_usd", ["5", float("inf"), float("nan"), 0, -1, True], "more than 0"),
        ("max_error_rate", ["5%", 5, float("nan"), True], "0.05"),
        ("model", [5, " ", ScriptedModel], "the name of a model, as in 'openai/gpt-6-luna'"),
        ("resource_key", ["", 5, "my llm", "class", "config", "context"], "such as 'llm'"),
        ("model_column", [5, "", " "], "name of a column"),
        ("on_row_error", ["skip", None, []], "'null', 'drop', 'raise'"),
        ("on_missing", ["drop", None, []], "'skip', 'fail', 'ask'"),
        ("retry_failed_rows", ["refused", None, ["unreachable"]], "a list of reasons, of 'invalid'"),
        ("failed_rows", ["yes", 1, None], "True or False"),
    ],
)
def test_invalid_value_is_named_with_the_valid_ones(name: str, values: list[Any], valid: str) -> None:
    """Instead of a Python type error or a silent misreading."""
    for value in values:
        with pytest.raises(ConfigError) as caught:
            build(**{name: value})
        assert f"{name}={value!r} must be" in str(caught.value)
        assert valid in str(caught.value)


@pytest.mark.parametrize(
    "arguments",
    [
        {"batch_size": "auto", "max_cost_usd": Decimal("0.5"), "max_error_rate": 0},
        {"batch_size": np.int64(20), "calibrate": 20, "on_disagreement": "stop", "max_cost_usd": np.float64(2)},
        {"max_cost_usd": None, "max_error_rate": None, "calibrate": None, "model_column": None},
    ],
)
def test_numbers_of_every_type_are_accepted(arguments: dict[str, Any]) -> None:
    """Ints, floats and Decimals where they are valid."""
    assert build(**arguments).key == dg.AssetKey("moods")


@pytest.mark.parametrize(
    "checks", [ErrorRateCheck(max_rate=0.1), "error_rate", {"type": "golden", "rows": [{"review": "me"}]}, None, 5]
)
def test_checks_are_a_list(checks: Any) -> None:
    """A single check is an error that names its type, without its rows."""
    with pytest.raises(ConfigError, match=rf"checks is a {type(checks).__name__}; .* checks=\[") as caught:
        build(checks=checks)
    assert "me'" not in str(caught.value)


def test_check_class_without_arguments_is_refused() -> None:
    """The error names the arguments that it needs."""
    with pytest.raises(ConfigError, match=r"class ErrorRateCheck; give a check, ErrorRateCheck\(max_rate=\.\.\.\)"):
        build(checks=[ErrorRateCheck])
    with pytest.raises(ConfigError, match=r"GoldenCheck\(rows=\.\.\., min_score=\.\.\.\)"):
        build(checks=[GoldenCheck])


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("system", "prompt=Prompt(..., system=...)"),
        ("examples", "prompt=Prompt(..., examples=...)"),
        ("syntax", "prompt=Prompt(..., syntax=...)"),
        ("temperature", "LLMResource(..., temperature=...)"),
        ("max_tokens", "LLMResource(..., max_output_tokens=...)"),
        ("base_url", "LLMResource(..., base_url=...)"),
        ("max_rows", "LLMAssetConfig(max_rows=...)"),
        ("max_cost", "Did you mean 'max_cost_usd'"),
        ("response_model", "Did you mean 'output'"),
        ("instructions", "prompt=Prompt(..., system=...)"),
        ("model_kwargs", "LLMResource(..., params=...)"),
    ],
)
def test_misplaced_argument_error_says_where_it_belongs(name: str, place: str) -> None:
    """Not the nearest argument of the decorator, which would mean something else."""
    with pytest.raises(ConfigError) as caught:
        build(**{name: "x"})
    assert f"has an argument {name!r}." in str(caught.value)
    assert place in str(caught.value)


# -- a model of the asset's own ------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["openai/gpt-4o-mini", ModelSpec("openai/gpt-4o-mini"), LLMResource(model="a/b")])
def test_an_asset_may_have_a_model_of_its_own(model: Any) -> None:
    """As in YAML: no resource `llm` is needed, and the definitions load without a warning."""
    asset = build(model=model, checks=[ErrorRateCheck(max_rate=0.1)], failed_rows=True)
    dg.Definitions.validate_loadable(dg.Definitions(assets=[reviews, asset]))
    resource: Any = asset.resource_defs["llm_for_moods"]
    assert resource is not None
    assert "llm" not in asset.required_resource_keys


@pytest.mark.parametrize("more", [{}, {"failed_rows": True}, {"required_resource_keys": {"other"}}])
def test_the_own_model_is_asked_and_not_the_resource(more: dict[str, Any]) -> None:
    """Also if another asset of the run asks the resource `llm`."""
    own, shared = ScriptedModel({"": "own"}, name="own"), ScriptedModel({"": "shared"}, name="shared")
    moods = build(model=own, **more)
    others = build(name="others")
    result = instances.materialize([reviews, moods, others], resources={"llm": shared, "other": 1})
    assert list(result.asset_value("moods")["mood"]) == ["own", "own"]
    assert list(result.asset_value("others")["mood"]) == ["shared", "shared"]


def test_model_and_resource_key_exclude_each_other() -> None:
    """One of them would be ignored."""
    with pytest.raises(ConfigError, match="resource_key='llm' and a model of its own; give one of the two"):
        build(model="openai/gpt-4o-mini", resource_key="llm")


# -- for type checkers ---------------------------------------------------------------------------------------------


def test_typed_arguments_equal_the_accepted_ones() -> None:
    """Type checkers accept the arguments of `@dg.asset` and `llm_asset`, by name."""
    unnamed = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    own = {*Arguments.model_fields, "model"}
    dagsters = {name for name, one in inspect.signature(dg.asset).parameters.items() if one.kind not in unnamed}
    typed = LLMAssetArguments.__annotations__.keys()
    assert {"prompt", "output", "compute_fn", "compute_kind"} >= typed ^ (own | dagsters)
    assert typed - BuildArguments.__annotations__.keys() == {"ins", "name"}
    shown = inspect.signature(llm_asset).parameters
    assert own == {name for name, one in shown.items() if one.kind not in unnamed}


def test_on_disagreement_needs_calibrate() -> None:
    """Otherwise it would never apply."""
    with pytest.raises(ConfigError, match=r"on_disagreement='stop' .* calibrate=50"):
        build(on_disagreement="stop")


# -- build_llm_asset-------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("upstream", [None, 5, "", [], [None], reviews])
def test_the_upstream_is_a_key(upstream: Any) -> None:
    """Anything else is an error that names it."""
    with pytest.raises(ConfigError, match=r"upstream=.* must be the key"):
        build(upstream=upstream)


def test_build_llm_asset_has_one_input() -> None:
    """More inputs need a function; the message says so."""
    with pytest.raises(ConfigError, match=r"ins=.*@llm_asset\(ins="):
        build(ins={"more": dg.AssetIn("labelled")})


# -- functions -----------------------------------------------------------------------------------------------------


async def stream(reviews):  # noqa: ANN001, ANN201
    """An async generator."""
    yield reviews


def by_position(reviews, /):  # noqa: ANN001, ANN201
    """Dagster passes inputs by name."""
    return reviews


def any_number(*reviews):  # noqa: ANN002, ANN201
    """These inputs have no names."""
    return reviews


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (functools.partial(print, "x"), "given a partial"),
        (reviews, "given a AssetsDefinition"),
        (None, "given a NoneType"),
        (stream, "'stream' must be a plain function"),
        (by_position, "'by_position' takes 'reviews' by position"),
        (any_number, r"'any_number' takes '\*reviews' by position"),
    ],
)
def test_function_without_named_inputs_is_refused(function: Any, message: str) -> None:
    """The error says what is expected."""
    with pytest.raises(ConfigError, match=message):
        llm_asset(prompt=PROMPT, output="mood")(function)


def test_decorator_without_arguments_shows_its_usage() -> None:
    """So does a positional argument."""
    bare: Any = llm_asset
    with pytest.raises(ConfigError, match=r"'by_position'.*@llm_asset\(prompt=\.\.\., output=\.\.\.\)"):
        bare(by_position)
    with pytest.raises(ConfigError, match="without its name"):
        bare(PROMPT, output="mood")


def test_inputs_may_come_as_keywords() -> None:
    """`**inputs` gets the inputs of `ins` that are not parameters, as in `@dg.asset`, and nothing else."""
    seen = []
    calendar = dg.AssetIn("calendar", dagster_type=dg.Nothing)
    ins = {"rows": dg.AssetIn("reviews"), "more": dg.AssetIn("labelled"), "calendar": calendar}

    @llm_asset(
        prompt=PROMPT, output="mood", ins=ins, checks=[GoldenCheck(rows="others", min_score=1)], model_column="by"
    )
    def moods(context, more, **inputs):  # noqa: ANN001, ANN003, ANN202
        seen.append((context.asset_key.to_user_string(), list(more["review"]), list(inputs)))
        return inputs["rows"]

    @dg.asset
    def others() -> pd.DataFrame:
        return pd.DataFrame({"review": ["x"], "mood": ["fine"]})

    table = run(reviews, labelled, others, moods).output_for_node("moods")
    assert seen == [("moods", ["good"], ["rows"])]
    assert list(table["mood"]) == ["fine", "fine"]


def test_keywords_without_inputs_are_no_input() -> None:
    """A function with `**inputs` and no `ins` depends on nothing."""

    @llm_asset(prompt=PROMPT, output="mood")
    def moods(**inputs):  # noqa: ANN003, ANN202
        return pd.DataFrame({"review": ["a"] * (1 + len(inputs))})

    assert list(run(moods).output_for_node("moods")["mood"]) == ["fine"]


# -- inputs with a second use ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["parameter", "ins", "keywords", "prefix"])
def test_labelled_rows_may_be_an_input_of_the_asset(how: str) -> None:
    """The asset is loaded once, for the function and for the check."""
    key = dg.AssetKey(["people", "up2"] if how == "prefix" else ["up2"])

    @dg.asset(key=key)
    def source() -> pd.DataFrame:
        return pd.DataFrame({"review": ["good"], "mood": ["fine"]})

    def by_name(up2):  # noqa: ANN001, ANN202
        return up2[["review"]]

    def renamed(more):  # noqa: ANN001, ANN202
        return more[["review"]]

    def keywords(**inputs):  # noqa: ANN003, ANN202
        assert list(inputs) == ["more"]
        return inputs["more"][["review"]]

    function, ins = {
        "parameter": (by_name, {}),
        "ins": (renamed, {"more": dg.AssetIn("up2")}),
        "keywords": (keywords, {"more": dg.AssetIn("up2")}),
        "prefix": (by_name, {"up2": dg.AssetIn(key_prefix="people")}),
    }[how]
    decorate = llm_asset(
        name="moods", prompt=PROMPT, output="mood", ins=ins, checks=[GoldenCheck(rows=source, min_score=1)]
    )
    asset = decorate(function)
    assert list(asset.keys_by_input_name.values()) == [key]
    result = run(source, asset)
    assert [check.passed for check in result.get_asset_check_evaluations()] == [True]
    assert list(result.output_for_node("moods")["mood"]) == ["fine"]


def test_labelled_rows_come_from_the_asset_not_a_resource_of_its_name() -> None:
    """A resource with the name of their asset is not where they come from."""

    @llm_asset(prompt=PROMPT, output="mood", checks=[GoldenCheck(rows="labelled", min_score=1)])
    def moods(reviews, labelled: dg.ResourceParam[str]):  # noqa: ANN001, ANN202
        assert labelled == "a resource"
        return reviews

    result = run(reviews, labelled, moods, labelled="a resource")
    assert [check.passed for check in result.get_asset_check_evaluations()] == [True]


def test_an_input_is_not_the_resource() -> None:
    """An unannotated parameter with the resource's name would be read as an input, so it is an error."""

    def moods(llm):  # noqa: ANN001, ANN202
        return llm

    def keywords(**inputs):  # noqa: ANN003, ANN202
        return inputs["llm"]

    arguments: dict[str, Any] = {"prompt": PROMPT, "output": "mood"}
    message = "parameter 'llm' of '{}' has the name of resource_key='llm'.*choose another resource_key"
    with pytest.raises(ConfigError, match=message.format("moods")):
        llm_asset(**arguments)(moods)
    with pytest.raises(ConfigError, match=message.format("keywords")):
        llm_asset(**arguments, ins={"llm": dg.AssetIn("reviews")})(keywords)

    @dg.asset(name="llm")
    def rows() -> pd.DataFrame:
        return pd.DataFrame({"review": ["a"]})

    renamed = llm_asset(**arguments, resource_key="oracle")(moods)
    table = run(rows, renamed, oracle=ScriptedModel({"": "yes"})).output_for_node("moods")
    assert list(table["mood"]) == ["yes"]


def test_a_dependency_may_have_the_name_of_the_resource() -> None:
    """A dependency passes no value, so there is no ambiguity."""

    @llm_asset(prompt=PROMPT, output="mood", deps=["llm"])
    def moods():  # noqa: ANN202
        return pd.DataFrame({"review": ["a"]})

    assert run(moods).success
