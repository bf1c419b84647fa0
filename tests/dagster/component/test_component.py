"""`LLMAssetComponent` in a defs folder: its YAML makes the same asset as the decorator."""

import dataclasses
import inspect
import json
import re
import textwrap
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from io import BytesIO
from typing import Any, Literal

import dagster as dg
import pandas as pd
import pytest
import yaml
from dagster._core.remote_representation.external_data import RepositorySnap
from dagster.components.testing import create_defs_folder_sandbox
from dagster.components.testing.utils import DefsFolderSandbox
from dagster_shared.serdes import serialize_value
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import BaseModel

from ondine_core.types.values import Call
from ondine_dagster import LLMAssetComponent, LLMResource, MediaOptions, Prompt, ScriptedModel, llm_asset
from ondine_dagster.component.fields import MediaFields
from tests.support import instances
from tests.support.pictures import picture
from tests.support.provider import Provider

# Dagster's own functions that read a component's YAML.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Class `(LocalFileCodeReference|CodeReferencesMetadataValue)`"),
    pytest.mark.filterwarnings("ignore:`parse_obj_as` is deprecated"),
]

TICKETS = pd.DataFrame({"id": [1, 2, 3], "body": ["I love it", "It broke", "T-1234 of <i>me@shop.example</i> is blue"]})
PROMPT = "Classify this ticket.\nTicket: {body}"
OUTPUT = {"mood": {"type": "string", "enum": ["good", "bad"]}, "topic": "string"}
LABELS = {"asset": {"key": "labels"}, "upstream": "tickets", "prompt": PROMPT, "output": OUTPUT}


@dg.asset
def tickets() -> pd.DataFrame:
    """The rows of most tests."""
    return TICKETS


def answer(prompt: str) -> dict[str, str]:
    return {"mood": "good" if "love" in prompt else "bad", "topic": prompt.rpartition(" ")[2]}


@contextmanager
def defs_folder(files: Mapping[str, str | Mapping[str, Any]]) -> Iterator[DefsFolderSandbox]:
    """A project with these files in its defs folder; mappings are written as YAML."""
    with create_defs_folder_sandbox() as sandbox:
        for name, content in files.items():
            file = sandbox.defs_folder_path / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(content if isinstance(content, str) else yaml.safe_dump(content, sort_keys=False))
        yield sandbox


def component(attributes: Mapping[str, Any], **envelope: Any) -> dict[str, Any]:
    return {"type": "ondine_dagster.LLMAssetComponent", "attributes": dict(attributes), **envelope}


@contextmanager
def loaded(
    attributes: Mapping[str, Any] | None = None, files: Mapping[str, Any] | None = None, **envelope: Any
) -> Iterator[dg.Definitions]:
    """The definitions of a component in a project, whose attributes are those of `LABELS` with these replaced.

    Without the schemas of all components, which Dagster adds to the definitions of a project in 0.2 s.
    """
    described = component(LABELS | dict(attributes or {}), **envelope)
    with (
        defs_folder({"labels/defs.yaml": described} | dict(files or {})) as sandbox,
        sandbox.build_component_tree() as tree,
    ):
        yield tree.build_defs(sandbox.defs_folder_path / "labels")


def labels_of(defs: dg.Definitions) -> dg.AssetsDefinition:
    (asset,) = defs.assets or ()
    assert isinstance(asset, dg.AssetsDefinition)
    return asset


def run(asset: dg.AssetsDefinition, llm: Any, **options: Any) -> dg.ExecuteInProcessResult:
    return instances.materialize([tickets, asset], resources={"llm": llm}, **options)


def table_of(asset: dg.AssetsDefinition, llm: Any = None) -> pd.DataFrame:
    return run(asset, llm or ScriptedModel(answer)).output_for_node("labels")


def with_tickets(defs: dg.Definitions) -> dg.Definitions:
    return dg.Definitions.merge(defs, dg.Definitions([tickets]))


def serialized(defs: dg.Definitions) -> str:
    """Everything that the code server sends to the UI."""
    return serialize_value(RepositorySnap.from_def(defs.get_repository_def()))


def spec_of(asset: dg.AssetsDefinition) -> dg.AssetSpec:
    """The asset's spec without Dagster's reference to its file."""
    (spec,) = asset.specs
    noted = ("dagster/code_references", "dagster/component_origin")
    return spec.replace_attributes(metadata={name: what for name, what in spec.metadata.items() if name not in noted})


# -- equality ------------------------------------------------------------------------------------------------------

DAILY = {"type": "daily", "start_date": "2026-01-01"}


@pytest.mark.filterwarnings("ignore:Parameter `backfill_policy` of (function|initializer):dagster.BetaWarning")
def test_component_makes_the_same_asset_as_the_decorator() -> None:
    """Spec, code version, op and rows are equal, for any attributes."""

    @llm_asset(
        key=["shop", "labels"],
        description="Labels.",
        group_name="enrich",
        owners=["team:shop"],
        tags={"tier": "gold"},
        kinds={"openai"},
        metadata={"who": "me"},
        code_version="v7",
        deps=["calendar"],
        partitions_def=dg.DailyPartitionsDefinition("2026-01-01"),
        automation_condition=dg.AutomationCondition.on_cron("@daily"),
        ins={"rows": dg.AssetIn("tickets")},
        prompt=Prompt(PROMPT, system="Be brief.", examples=[("Nice", {"mood": "good", "topic": "x"})]),
        output=OUTPUT,
        batch_size=2,
        model_column="by",
        pool="llm",
        op_tags={"cpu": "2"},
        retry_policy=dg.RetryPolicy(max_retries=3, delay=1, backoff=dg.Backoff.EXPONENTIAL, jitter=dg.Jitter.FULL),
        backfill_policy=dg.BackfillPolicy.multi_run(5),
        io_manager_key="files",
    )
    def declared(rows: pd.DataFrame) -> pd.DataFrame:
        return rows

    written = {
        "asset": {
            "key": "shop/labels",
            "description": "Labels.",
            "group_name": "enrich",
            "owners": ["team:shop"],
            "tags": {"tier": "gold"},
            "kinds": ["openai"],
            "metadata": {"who": "me"},
            "code_version": "v7",
            "deps": ["calendar"],
            "partitions_def": DAILY,
            "automation_condition": "{{ dg.AutomationCondition.on_cron('@daily') }}",
        },
        "prompt": {
            "text": PROMPT,
            "system": "Be brief.",
            "examples": [{"input": "Nice", "answer": {"mood": "good", "topic": "x"}}],
        },
        "batch_size": 2,
        "model_column": "by",
        "op": {
            "pool": "llm",
            "tags": {"cpu": "2"},
            "retry_policy": {"max_retries": 3, "delay": 1, "backoff": "exponential", "jitter": "full"},
            "backfill_policy": {"type": "multi_run", "max_partitions_per_run": 5},
        },
        "io_manager_key": "files",
    }
    with loaded(written) as defs:
        twin = labels_of(defs)
    assert spec_of(twin) == spec_of(declared)
    for name in ("pool", "tags", "retry_policy", "required_resource_keys"):
        assert getattr(twin.op, name) == getattr(declared.op, name), name
    assert twin.backfill_policy == declared.backfill_policy
    asked = []
    for asset in (declared, twin):
        llm = ScriptedModel(answer, max_batch_size=None)
        resources = {"llm": llm, "files": dg.mem_io_manager}
        instances.materialize([tickets, asset], partition_key="2026-01-02", resources=resources)
        asked.append([without_ids(call) for call in llm.calls])
    assert asked[0] == asked[1] != []


def test_every_argument_of_the_decorator_is_an_attribute() -> None:
    """A new argument of the decorator must be added to the component."""
    arguments = {name for name, one in inspect.signature(llm_asset).parameters.items() if one.kind is one.KEYWORD_ONLY}
    # The field is called `llm`, and `model` in YAML.
    names = {name: "llm" if name == "model" else name for name in arguments}
    assert set(names.values()) <= LLMAssetComponent.model_fields.keys()
    schema = LLMAssetComponent.model().model_json_schema()
    assert arguments <= schema["properties"].keys()
    unlike = {
        name: (parameter.default, LLMAssetComponent.model_fields[names[name]].default)
        for name, parameter in inspect.signature(llm_asset).parameters.items()
        if name in arguments - {"prompt", "output"}
        and parameter.default != LLMAssetComponent.model_fields[names[name]].default
    }
    assert not unlike


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"batch_size": 3},
        {"batch_size": "auto"},
        {"batch_size": 3, "batch_format": "xml"},
        {"batch_size": 3, "calibrate": 3, "min_agreement": 0.5, "on_disagreement": "stop"},
        {"model_column": "answered_by"},
        {"on_row_error": "drop"},
        {"on_row_error": "raise"},
        {"max_error_rate": 0.1},
        {"max_cost_usd": 5},
        {"tier": "flex", "prompt_cache": "off"},
        {"tier": "batch", "answer_by": "06:00 Europe/Berlin"},
        {"clean": ["html", {"truncate": {"max_tokens": 12, "mark": "."}}]},
        {"clean": "html", "sanitize": "redact"},
        {"sanitize": {"mode": "placeholder", "rules": ["email"], "patterns": {"TICKET": r"T-\d{4}"}}},
        {"sanitize": {"mode": "hash", "salt": "sixteen letters or more"}},
    ],
    ids=str,
)
def test_an_argument_has_the_same_effect(arguments: dict[str, Any]) -> None:
    """Both make the same calls and the same table, or fail with the same message."""

    def grumpy(prompt: str) -> Any:
        return {"mood": "furious"} if "broke" in prompt else answer(prompt)

    declared = llm_asset(name="labels", prompt=PROMPT, output=OUTPUT, **arguments)(rows_of_tickets)
    with loaded(arguments) as defs:
        assert outcome(labels_of(defs), grumpy) == outcome(declared, grumpy)


def rows_of_tickets(tickets: pd.DataFrame) -> pd.DataFrame:
    return tickets


def without_ids(call: Call) -> str:
    """The request, without the random ids of rows."""
    return re.sub(r'id(=|": ?)"?\d+', "id", str(call.messages))


def outcome(asset: dg.AssetsDefinition, script: Callable[[str], Any]) -> tuple[Any, Any]:
    llm = ScriptedModel(script, max_batch_size=None)
    result = run(asset, llm, raise_on_error=False)
    calls = sorted(map(without_ids, llm.calls))
    if result.success:
        return result.output_for_node("labels").to_dict(), calls
    failure = result.failure_data_for_node("labels")
    assert failure is not None
    assert failure.user_failure_data is not None
    return failure.user_failure_data.description, calls


# -- prompts -------------------------------------------------------------------------------------------------------


def literal(text: str) -> str:
    """`text` as a template writes it."""
    return text.replace("{", "{{").replace("}", "}}")


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.differing_executors])
@example("{{ env.HOME }} {% if x %} {# y #} {{ '{{' }}", True)
@example("{{ env.HOME }} {% if x %} {# y #} {{ '{{' }}", False)
@given(st.text(st.sampled_from("{}%#'\": -|>&*!\\\n\t$aé~"), max_size=12), st.booleans())
def test_braces_reach_the_model_unchanged(text: str, in_file: bool) -> None:
    """Dagster's templating does not touch prompts, in YAML or in a file."""
    assume("{ a" not in text)  # with its braces doubled it reads as Jinja2, which is refused
    template = f"Look: {literal(text)} end. {{body}}"
    files = {"labels/prompt.md": template} if in_file else {}
    with loaded({"prompt": {"file": "prompt.md"} if in_file else template}, files) as defs:
        llm = ScriptedModel(answer)
        table_of(labels_of(defs), llm)
    assert {call.messages[-1].content for call in llm.calls} == {
        f"Look: {text} end. {body}" for body in TICKETS["body"]
    }


def test_a_prompt_file_is_beside_its_yaml_and_its_text_is_in_the_code_version() -> None:
    """In any working directory; a changed file changes the code version."""
    versions = []
    for text in (PROMPT, PROMPT, "Another: {body}"):
        with loaded({"prompt": {"file": "texts/p.md"}}, {"labels/texts/p.md": text}) as defs:
            versions.append(spec_of(labels_of(defs)).code_version)
    assert versions[0] == versions[1] != versions[2]


@pytest.mark.parametrize(
    ("prompt", "files"),
    [
        ({"text": "{% if body %}T: {{ body | upper }}{% endif %}", "syntax": "jinja2"}, {}),
        ({"file": "p.md", "syntax": "jinja2"}, {"labels/p.md": "{% if body %}T: {{ body | upper }}{% endif %}"}),
        ({"file": "p.md.j2"}, {"labels/p.md.j2": "{% if body %}T: {{ body | upper }}{% endif %}"}),
    ],
    ids=["inline", "file", "suffix"],
)
def test_jinja_in_a_prompt_sees_the_row(prompt: dict[str, str], files: dict[str, str]) -> None:
    """Not the scope of the YAML."""
    with loaded({"prompt": prompt}, files) as defs:
        llm = ScriptedModel(answer)
        table_of(labels_of(defs), llm)
    assert sorted(call.messages[-1].content for call in llm.calls) == sorted(
        f"T: {body.upper()}" for body in TICKETS["body"]
    )


PAIRS = [["Nice", {"mood": "good", "topic": "1"}], ["Oh no", {"mood": "bad", "topic": "{{ 2 }}"}]]
MAPPINGS = [{"input": {"body": given}, "answer": wanted} for given, wanted in PAIRS]


@pytest.mark.parametrize(
    ("examples", "files"),
    [
        (PAIRS, {}),
        (MAPPINGS, {}),
        ("examples.json", {"labels/examples.json": json.dumps(PAIRS)}),
        ("examples.yaml", {"labels/examples.yaml": yaml.safe_dump(MAPPINGS)}),
    ],
    ids=["pairs", "mappings", "json", "yaml"],
)
def test_system_message_and_examples(examples: Any, files: dict[str, str]) -> None:
    """In every notation the model gets the same messages, with the answers unchanged."""
    with loaded({"prompt": {"text": PROMPT, "system": "Be {{ brief }}.", "examples": examples}}, files) as defs:
        llm = ScriptedModel(answer)
        table_of(labels_of(defs), llm)
    head = [message.content for message in llm.calls[0].messages[:-1]]
    assert head[0] == "Be {{ brief }}."
    assert [PROMPT.replace("{body}", given) for given, _ in PAIRS] == head[1::2]
    assert [wanted for _, wanted in PAIRS] == [json.loads(turn) for turn in head[2::2]]


# -- outputs -------------------------------------------------------------------------------------------------------

TEMPLATE_VARS = """
    import dagster as dg
    from pydantic import BaseModel
    from typing import Literal

    class Labels(BaseModel):
        mood: Literal["good", "bad"]

    @dg.template_var
    def labels():
        return Labels

    @dg.template_var
    def moods():
        return ["good", "bad"]
"""


@pytest.mark.parametrize(
    ("output", "reply", "columns"),
    [
        ({"mood": "string"}, {"mood": "1"}, {"mood": "1"}),
        ({"mood": {"type": "string", "enum": ["1", "no {{ x }}"]}}, {"mood": "no {{ x }}"}, {"mood": "no {{ x }}"}),
        ({"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}, {"n": 1}, {"n": 1}),
        ("summary", "Short.", {"summary": "Short."}),
        (r"(?P<mood>\w+), because (?P<why>.+)", "bad, because torn", {"mood": "bad", "why": "torn"}),
        ("{{ labels }}", {"mood": "bad"}, {"mood": "bad"}),
        ({"mood": {"type": "string", "enum": "{{ moods }}"}}, {"mood": "bad"}, {"mood": "bad"}),
    ],
    ids=["type", "literal", "json-schema", "text", "pattern", "model", "template"],
)
def test_every_kind_of_output(output: Any, reply: Any, columns: dict[str, Any]) -> None:
    """Texts stay texts unless they are a template as a whole."""
    files = {"labels/variables.py": textwrap.dedent(TEMPLATE_VARS)}
    with loaded({"output": output}, files, template_vars_module=".variables") as defs:
        table = table_of(labels_of(defs), ScriptedModel(lambda _: reply))
    assert table[[*columns]].to_dict("records") == [columns] * len(TICKETS)


# -- the model -----------------------------------------------------------------------------------------------------


def test_a_model_of_the_assets_own_is_private_to_it() -> None:
    """Components with own models neither conflict nor share resources, whatever their keys."""
    keys = ["labels", "eu/labels", "labels-2", "9lives"]
    files = {
        f"part{number}/defs.yaml": component(LABELS | {"asset": {"key": key}, "model": f"openai/model-{number}"})
        for number, key in enumerate(keys)
    }
    with defs_folder(files) as sandbox, sandbox.build_all_defs() as defs:
        resources = dict(defs.resources or {})
        assets = {asset.key: asset for asset in defs.assets or () if isinstance(asset, dg.AssetsDefinition)}
        dg.Definitions.validate_loadable(with_tickets(defs))
    for number, key in enumerate(keys):
        (asked,) = assets[dg.AssetKey.from_user_string(key)].required_resource_keys - {"io_manager"}
        assert resources.pop(asked).model == f"openai/model-{number}"
    assert not resources


def test_resource_key_is_llm_by_default() -> None:
    """As for the decorator."""
    with loaded() as defs:
        assert labels_of(defs).required_resource_keys == {"llm", "io_manager"}
    with loaded({"resource_key": "other"}) as defs:
        assert labels_of(defs).required_resource_keys == {"other", "io_manager"}


FIELDS = {
    "api_key": "{{ env.SHOP_KEY }}",
    "requests_per_minute": "{{ env('SHOP_RPM', '60000') }}",
    "timeout_s": 10,
    "settings": {"structured_output": "{{ env('SHOP_STRUCTURE') }}"},
    "budgets": [{"name": "shop", "max_cost_usd": 5, "period": "day"}],
    "observers": ["logging"],
    "input_cost_per_1k_tokens": 0.001,
    "output_cost_per_1k_tokens": 0.001,
    "max_output_tokens": 100,
}


def test_a_key_is_read_when_the_step_starts_and_is_shown_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """The definitions load without it, and the UI gets only the variable's name."""
    secret, structure = "sentinel-5up3r-53cr3t", "json_object"
    with Provider(lambda _: {"mood": "good", "topic": "x"}) as provider:
        fields = {"model": "openai_compatible/m", "base_url": provider.base_url} | FIELDS
        with loaded({"model": fields}) as defs:
            assert "SHOP_KEY" in serialized(with_tickets(defs))
        monkeypatch.setenv("SHOP_KEY", secret)
        monkeypatch.setenv("SHOP_STRUCTURE", structure)
        with loaded({"model": fields}) as defs:
            shown = serialized(with_tickets(defs))
            assert with_tickets(defs).resolve_implicit_global_asset_job_def().execute_in_process().success
    assert secret not in shown
    assert structure not in shown
    assert {asked.headers["Authorization"] for asked in provider.ledger.requests} == {f"Bearer {secret}"}
    assert {asked.body["response_format"]["type"] for asked in provider.ledger.requests} == {structure}


def test_a_field_may_be_a_template(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also numbers; the model may come from the environment or be a Python resource."""
    monkeypatch.setenv("SHOP_RPM", "120")
    with loaded({"model": FIELDS | {"model": "openai/m"}}) as defs:
        (llm,) = (defs.resources or {}).values()
        assert (llm.requests_per_minute, llm.budgets[0].name) == (120, "shop")
    with loaded({"model": "{{ env.SHOP_MODEL }}"}) as defs:
        (llm,) = (defs.resources or {}).values()
        assert llm.model == dg.EnvVar("SHOP_MODEL")
    variables = """
        import dagster as dg
        from ondine_dagster import LLMResource

        @dg.template_var
        def small():
            return LLMResource(model="openai/small")
    """
    files = {"labels/variables.py": textwrap.dedent(variables)}
    with loaded({"model": "{{ small }}"}, files, template_vars_module=".variables") as defs:
        (llm,) = (defs.resources or {}).values()
        assert llm.model == "openai/small"


def test_a_field_of_a_mapping_may_be_a_template(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its value is checked like a written one: the environment has texts only."""
    monkeypatch.setenv("SHOP_NUMBER", "3")
    number = "{{ env.SHOP_NUMBER }}"
    attributes = {
        "checks": [{"type": "error_rate", "max_rate": "{{ 0.25 }}", "blocking": "{{ true }}"}],
        "op": {"retry_policy": {"max_retries": number, "delay": number, "backoff": "{{ 'linear' }}"}},
        "sanitize": {"mode": "{{ 'hash' }}", "salt": "pepper and salt of a shop"},
        "prompt": {"text": PROMPT, "media": {"max_side_px": number, "fetch": "{{ 1 == 1 }}"}},
    }
    with loaded(attributes) as defs:
        asset = labels_of(defs)
    assert asset.op.retry_policy == dg.RetryPolicy(3, 3, dg.Backoff.LINEAR)
    (check,) = asset.check_specs
    assert check.blocking


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"op": {"retry_policy": {"max_retries": "{{ 'often' }}"}}}, "defs.yaml:.*max_retries.*valid integer"),
        ({"checks": [{"type": "error_rate", "max_rate": "{{ 'low' }}"}]}, "defs.yaml:.*max_rate.*valid number"),
        ({"checks": [{"type": "error_rate", "max_rate": "low"}]}, "max_rate"),
        ({"checks": [{"type": "error_rate", "max_rate": "{{ env.SHOP_UNSET }}"}]}, "'SHOP_UNSET' is not set"),
    ],
    ids=["retry", "check", "written", "unset"],
)
def test_template_of_another_type_is_refused(attributes: dict[str, Any], message: str) -> None:
    """Like a value of another type."""
    with pytest.raises(Exception, match="labels") as caught, loaded(attributes):
        pass
    assert re.search(message, f"{caught.value} {caught.value.__cause__}", re.DOTALL)


def test_every_resource_field_is_in_the_schema() -> None:
    """With its description."""
    fields = LLMAssetComponent.model().model_json_schema()["$defs"]["ModelFields"]["properties"]
    assert {name: field.description for name, field in LLMResource.model_fields.items()} == {
        name: field["description"] for name, field in fields.items()
    }


def test_every_attribute_is_described() -> None:
    """`dg` and editors show a description of each attribute."""
    schema = LLMAssetComponent.model().model_json_schema()
    ours = [schema, *(part for name, part in schema["$defs"].items() if "Fields" in name)]
    assert len(ours) > 8
    assert not [name for part in ours for name, one in part["properties"].items() if not one.get("description")]


# -- Dagster's features --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ({"type": "hourly", "start_date": "2026-01-01-00:00"}, dg.HourlyPartitionsDefinition("2026-01-01-00:00")),
        ({**DAILY, "end_date": "2026-02-01"}, dg.DailyPartitionsDefinition("2026-01-01", end_date="2026-02-01")),
        ({"type": "weekly", "start_date": "2026-01-01"}, dg.WeeklyPartitionsDefinition("2026-01-01")),
        (
            {"type": "time_window", "start_date": "2026", "fmt": "%Y", "cron_schedule": "0 0 1 1 *"},
            dg.TimeWindowPartitionsDefinition("2026", "%Y", cron_schedule="0 0 1 1 *"),
        ),
        ({"type": "static", "partition_keys": ["a", "b"]}, dg.StaticPartitionsDefinition(["a", "b"])),
        ("{{ dg.MonthlyPartitionsDefinition('2026-01-01') }}", dg.MonthlyPartitionsDefinition("2026-01-01")),
        ("{{ tenants }}", dg.DynamicPartitionsDefinition(name="tenants")),
    ],
    ids=["hourly", "daily", "weekly", "window", "static", "monthly", "dynamic"],
)
def test_partitions(written: Any, meant: dg.PartitionsDefinition) -> None:
    """Dagster's YAML forms, and any other as a template."""
    variables = """
        import dagster as dg

        @dg.template_var
        def tenants():
            return dg.DynamicPartitionsDefinition(name="tenants")
    """
    attributes = {"asset": {"key": "labels", "partitions_def": written}}
    files = {"labels/variables.py": textwrap.dedent(variables)}
    with loaded(attributes, files, template_vars_module=".variables") as defs:
        assert spec_of(labels_of(defs)).partitions_def == meant


@pytest.mark.skipif(
    dg.__version__.startswith("1.12."), reason="Dagster 1.12 post-processes no asset whose upstream is elsewhere"
)
def test_post_processing_applies() -> None:
    """As to any component's assets; rows are unchanged."""
    changes = {"assets": [{"target": "*", "attributes": {"group_name": "later", "tags": {"tier": "gold"}}}]}
    with loaded({"model": "openai/m"}, post_processing=changes) as defs:
        asset = labels_of(defs)
        spec = spec_of(asset)
        assert (spec.group_name, spec.tags["tier"], spec.kinds) == ("later", "gold", {"llm"})
        result = instances.materialize([tickets, asset], resources={"llm_for_labels": ScriptedModel(answer)})
    assert list(result.output_for_node("labels")["topic"]) == ["it", "broke", "blue"]


SUBCLASS = """
    import dagster as dg
    from ondine_dagster import LLMAssetComponent

    class Short(LLMAssetComponent):
        longest: int

        def get_asset_spec(self):
            return super().get_asset_spec().replace_attributes(key=dg.AssetKey(["eu", "labels"]), owners=["team:eu"])

        def rows(self, context, upstream):
            context.log.info("choosing rows")
            rows = super().rows(context, upstream)
            return rows[rows["body"].str.len() <= self.longest]
"""


def test_a_subclass_chooses_rows_and_spec() -> None:
    """With attributes of its own; the failed rows' asset follows the key."""
    written = {"type": ".short.Short", "attributes": LABELS | {"longest": 8, "model": "openai/m"}}
    files = {"labels/defs.yaml": written, "labels/short.py": textwrap.dedent(SUBCLASS)}
    with defs_folder(files) as sandbox, sandbox.build_all_defs() as defs:
        asset = labels_of(defs)
        assert spec_of(asset).owners == ["team:eu"]
        result = instances.materialize([tickets, asset], resources={"llm_for_eu__labels": ScriptedModel(answer)})
    table = result.output_for_node("eu__labels")
    assert list(table["id"]) == [2]
    assert "labels_error" in table.columns


CHECKS = [
    {"type": "error_rate", "max_rate": 0.5, "blocking": True},
    {"type": "null_rate", "max_rate": 0, "columns": ["topic"]},
    {"type": "drift", "column": "mood", "max_distance": 0.2, "name": "moods"},
    {
        "type": "golden",
        "rows": [{"body": "I love it", "mood": "good"}, {"body": "No", "mood": "good"}],
        "min_score": 0.9,
    },
]


def test_checks_and_failed_rows() -> None:
    """Types and arguments equal the decorator's; a labelled sample is given inline or as an asset."""
    declared = llm_asset(
        name="labels",
        prompt=PROMPT,
        output=OUTPUT,
        ins={"rows": dg.AssetIn("tickets")},
        checks=CHECKS,
        failed_rows=True,
    )(lambda rows: rows)
    with loaded({"checks": CHECKS, "failed_rows": True, "keep_replies": True}) as defs:
        asset = labels_of(defs)
    written, meant = ([spec.with_metadata({}) for spec in one.check_specs] for one in (asset, declared))
    assert written == meant
    assert set(asset.keys) == {dg.AssetKey("labels"), dg.AssetKey("labels_failed")}
    result = run(asset, ScriptedModel(answer))
    passed = {check.check_name: check.passed for check in result.get_asset_check_evaluations()}
    assert passed == {"error_rate": True, "null_rate_topic": True, "moods": True, "golden": False}
    with loaded({"checks": [{"type": "golden", "rows": "shop/golden", "min_score": 1}]}) as defs:
        assert {dependency.asset_key for spec in labels_of(defs).specs for dependency in spec.deps} == {
            dg.AssetKey("tickets"),
            dg.AssetKey(["shop", "golden"]),
        }


def test_rows_by_partition() -> None:
    """Each run takes its own rows from an unpartitioned upstream."""
    parts = {"key": "labels", "partitions_def": {"type": "static", "partition_keys": ["1", "2", "3"]}}
    with loaded({"asset": parts, "partition_by": "id"}) as defs:
        result = run(labels_of(defs), ScriptedModel(answer), partition_key="2")
    assert list(result.output_for_node("labels")["id"]) == [2]


class Labels(BaseModel):
    """An output model in Python."""

    mood: Literal["good", "bad"]


def test_a_component_can_be_made_in_python() -> None:
    """With the decorator's values, including a scripted model."""
    made = LLMAssetComponent(
        asset=dg.AssetSpec("labels"),
        upstream=dg.AssetKey("tickets"),
        prompt=Prompt(PROMPT),
        output=Labels,
        llm=ScriptedModel({"": {"mood": "good"}}),
    )
    defs = with_tickets(made.build_defs(dg.ComponentTree.for_test().load_context))
    result = defs.resolve_implicit_global_asset_job_def().execute_in_process()
    assert list(result.output_for_node("labels")["mood"]) == ["good"] * 3


# -- mistakes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"prompt": "Hi {"}, ":{line} - attributes.prompt: The prompt does not parse"),
        ({"prompt": "Hi"}, ":{line} - attributes.prompt: The prompt reads no column"),
        ({"prompt": {"file": "p.md"}}, ":{line} - attributes.prompt: Cannot read the prompt file"),
        ({"prompt": {"text": "{body}", "examples": "e.yaml"}}, "Cannot read the examples in"),
        ({"prompt": {"text": "{body}", "examples": [{"input": "a"}]}}, "answer"),
        ({"prompt": {"text": "{body}", "examples": [["a", "b", "c"]]}}, "An example is a pair"),
        ({"prompt": {"text": "{body}", "filee": "x"}}, "PromptFields.filee"),
        ({"output": {"body": "string"}}, ":{line} - attributes.output: 'body' is an output column and also a column"),
        ({"output": {"mood": "strange"}}, ":{line} - attributes.output"),
        ({"output": "(?P<mood>["}, ":{line} - attributes.output"),
        ({"output": {"mood": {"enum": "{{ moods }}"}}}, " - attributes.output.mood.enum"),
        ({"batch_size": 0}, "attributes.batch_size"),
        ({"batch_size": True}, "attributes.batch_size"),
        ({"calibrate": True}, "attributes.calibrate"),
        ({"on_disagreement": "stop"}, ":{line} - attributes.on_disagreement: on_disagreement='stop' is about"),
        ({"resource_key": ""}, ":{line} - attributes.resource_key: resource_key='' must be"),
        ({"output": {"labels_error": "string"}}, ":{line} - attributes.output: The output column 'labels_error' has"),
        ({"model_column": "mood"}, ":{line} - attributes.model_column: model_column='mood' is also an output column"),
        ({"model_column": ""}, ":{line} - attributes.model_column: model_column='' must be"),
        ({"batch_format": "toml"}, ":{line} - attributes.batch_format: batch_format='toml': Input should be 'json'"),
        ({"max_cost_usd": 0}, "attributes.max_cost_usd"),
        ({"max_cost_usd": float("inf")}, ":{line} - attributes.max_cost_usd: max_cost_usd=inf must be"),
        ({"min_agreement": 1.5}, "attributes.min_agreement"),
        ({"on_row_error": "ignore"}, ":{line} - attributes.on_row_error"),
        ({"resource_key": "llm", "model": "openai/m"}, ":{line} - attributes.resource_key"),
        ({"model": {"model": "openai/m", "burst": 0}}, "ModelFields.burst"),
        ({"model": {"model": "openai/m", "temperatur": 0}}, "ModelFields.temperatur"),
        ({"model": {"model": "openai/m", "input_cost_per_1k_tokens": "{{ 0 - 1 }}"}}, "input_cost_per_1k_tokens"),
        ({"checks": "error_rate"}, ":{line} - attributes.checks: checks is a str; it must be a list"),
        ({"checks": [{"type": "rate", "max_rate": 1}]}, "attributes.checks."),
        ({"checks": [{"type": "error_rate", "rate": 1}]}, ".0.error_rate.max_rate"),
        ({"checks": [{"type": "error_rate", "max_rate": 2}]}, ":{line} - attributes.checks: max_rate=2"),
        ({"checks": [{"type": "drift", "column": "topic", "max_distance": 1}]}, "no closed set"),
        ({"partition_by": "id"}, ":{line} - attributes.partition_by"),
        ({"op": {"pol": "llm"}}, "attributes.op.OpFieldsModel.pol"),
        ({"colour": "red"}, "attributes.colour"),
    ],
    ids=str,
)
def test_a_mistake_is_named_with_its_file_and_line(wrong: dict[str, Any], message: str) -> None:
    """When the definitions load."""
    described = component(LABELS | wrong)
    text = yaml.safe_dump(described, sort_keys=False)
    line = 1 + text.splitlines().index(
        next(one for one in text.splitlines() if one.startswith(f"  {next(iter(wrong))}:"))
    )
    with pytest.raises(Exception, match="labels") as caught, loaded(wrong):
        pass
    messages = "\n".join(str(error) for error in causes(caught.value))
    assert "labels/defs.yaml" in messages
    assert message.format(line=line) in messages


def causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def test_examples_that_are_nested_too_deeply_are_named() -> None:
    """As any other file that cannot be read."""
    files = {"labels/e.yaml": "[" * 1000 + "]" * 1000}
    wrong = {"prompt": {"text": PROMPT, "examples": "e.yaml"}}
    with pytest.raises(Exception, match="labels") as caught, loaded(wrong, files):
        pass
    assert any("Cannot read the examples in" in str(error) for error in causes(caught.value))


@pytest.mark.parametrize("key", ["sentinel-5up3r-53cr3t", "{{ env('SHOP_KEY', 'sentinel-5up3r-53cr3t') }}"])
def test_literal_api_key_is_refused(key: str) -> None:
    """Without repeating it."""
    with pytest.raises(Exception, match="labels") as caught, loaded({"model": {"model": "openai/m", "api_key": key}}):
        pass
    messages = "\n".join(str(error) for error in causes(caught.value))
    assert "must name a variable" in messages
    assert "53cr3t" not in messages


# -- images --------------------------------------------------------------------------------------------------------

COLOURS = {"text": "Which colour?\n{photo:image}", "media": {"root": "photos", "max_side_px": 20, "detail": "low"}}


def test_images_in_yaml() -> None:
    """With the options of `MediaOptions` under `prompt`; a relative root is relative to the file."""

    @dg.asset(name="tickets")
    def photos() -> pd.DataFrame:
        return pd.DataFrame({"photo": ["red.png", "../red.png"]})

    described = component(LABELS | {"prompt": COLOURS, "output": {"colour": "string"}})
    with defs_folder({"labels/defs.yaml": described}) as sandbox:
        for folder in ("labels/photos", "labels"):
            file = sandbox.defs_folder_path / folder / "red.png"
            file.parent.mkdir(exist_ok=True)
            file.write_bytes(picture())
        with sandbox.build_all_defs() as defs, Provider(lambda _: {"colour": "red"}) as provider:
            llm = LLMResource(model="openai_compatible/eyes", base_url=provider.base_url)
            result = instances.materialize([photos, labels_of(defs)], resources={"llm": llm})
            (asked,) = provider.ledger.requests
    (seen,) = asked.media
    assert (seen.media_type, seen.detail) == ("image/png", "low")
    assert Image.open(BytesIO(seen.content)).size == (20, 13)
    table = result.output_for_node("labels")
    assert table["colour"].fillna("").to_list() == ["red", ""]
    assert "out of the root" in table["labels_error"][1]


def test_the_options_of_images_are_those_of_python() -> None:
    """The same names and defaults."""
    in_python = {field.name: field.default for field in dataclasses.fields(MediaOptions)}
    in_yaml = {name: field.default for name, field in MediaFields.model_fields.items()}
    assert in_yaml == in_python


@pytest.mark.parametrize(
    ("media", "message"),
    [
        ({"pages": "x-y"}, "pages='x-y' is not understood"),
        ({"max_side_px": 0}, "max_side_px=0 must be more than 0"),
        ({"root": "{{ env.NO_SUCH_VARIABLE }}"}, "the variable 'NO_SUCH_VARIABLE' is not set"),
        ({"side": 3}, "side"),
        ({"detail": "medium"}, "detail"),
    ],
)
def test_invalid_image_option_is_an_error_of_the_file(media: dict[str, Any], message: str) -> None:
    """When the definitions load."""
    with pytest.raises(Exception, match="labels") as caught, loaded({"prompt": COLOURS | {"media": media}}):
        pass
    assert message in "\n".join(str(error) for error in causes(caught.value))
