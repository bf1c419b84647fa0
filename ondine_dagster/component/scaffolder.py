"""`dg scaffold defs ondine_dagster.LLMAssetComponent my_asset`: writes a file for the asset and one for its prompt.

It asks no questions. The files load as soon as `upstream` names an asset of the project; then only the prompt has to be
changed.
"""

import json
import re

import dagster as dg
import yaml
from pydantic import BaseModel, Field

from ondine_core.providers.openai_servers import SERVERS


class ScaffoldFields(BaseModel):
    """The options of `dg scaffold defs`; none is required."""

    upstream: str = Field("reviews", description="Key of the asset that has the rows.")
    column: str = Field("review", description="The column that the prompt reads.")
    model: str = Field("openai/gpt-6-luna", description="The model that is asked.")
    resource_key: str | None = Field(None, description="An LLMResource of the project, asked instead of `model`.")


class LLMAssetScaffolder(dg.Scaffolder[ScaffoldFields]):
    """Writes `defs.yaml` (or `component.py`) and `prompt.md`."""

    @classmethod
    def get_scaffold_params(cls) -> type[ScaffoldFields]:
        """The options of the command."""
        return ScaffoldFields

    def scaffold(self, request: dg.ScaffoldRequest[ScaffoldFields]) -> None:
        """Write the files of `request`."""
        folder, fields = request.target_path, request.params
        key = re.sub(r"\W", "_", folder.name)
        (folder / "prompt.md").write_text(_PROMPT.format(column=fields.column), encoding="utf-8")
        if request.scaffold_format == "yaml":
            (folder / "defs.yaml").write_text(_in_yaml(request.type_name, key, fields), encoding="utf-8")
        else:
            (folder / "component.py").write_text(_in_python(request.type_name, key, fields), encoding="utf-8")


_PROMPT = """\
Give the sentiment of this text, and in at most three words what it is about.

Text: {{{column}}}
"""
_YAML = """\
type: {type_name}

attributes:
  asset:
    key: {key}
  upstream: {upstream}  # the asset of this project that has the rows
  prompt:
    file: prompt.md  # {{column}} stands for a column's value, {{column:image}} for an image that it holds or names
  output:  # the columns to add: a type each, or a JSON schema
    sentiment: {{type: string, enum: [positive, negative, neutral]}}
    topic: string
  {model_line}
  batch_size: 1  # rows in one call
  # max_cost_usd: 5  # hard cap for one materialization
  # op: {{pool: llm}}
"""
_REQUIREMENTS = """
requirements:
  env:
    - {variable}
"""


def _in_yaml(type_name: str, key: str, fields: ScaffoldFields) -> str:
    if fields.resource_key:
        model_line, server = f"resource_key: {_plain(fields.resource_key)}", None
    else:
        model_line, server = f"model: {_plain(fields.model)}", SERVERS.get(fields.model.partition("/")[0])
    text = _YAML.format(type_name=type_name, key=_plain(key), upstream=_plain(fields.upstream), model_line=model_line)
    return text + (_REQUIREMENTS.format(variable=server.keys[0]) if server and server.needs_key else "")


def _plain(value: str) -> str:
    """`value` as YAML, in quotes if it needs them."""
    text: str = yaml.safe_dump(value, width=10_000, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...")


_PYTHON = '''\
from pathlib import Path

import dagster as dg

{imports}


@dg.component_instance
def load(context: dg.ComponentLoadContext) -> {name}:
    """The asset and its prompt, which is in prompt.md."""
    return {name}(
        asset=dg.AssetSpec({key}),
        upstream=dg.AssetKey({upstream}),  # the asset of this project that has the rows
        prompt=Prompt(file=Path(__file__).with_name("prompt.md")),
        output={{
            "sentiment": {{"type": "string", "enum": ["positive", "negative", "neutral"]}},
            "topic": "string",
        }},
        {model_argument},
    )
'''


def _in_python(type_name: str, key: str, fields: ScaffoldFields) -> str:
    module, _, name = type_name.rpartition(".")
    names = {"Prompt"}
    imports = []
    if fields.resource_key:
        model_argument = f"resource_key={json.dumps(fields.resource_key)}"
    else:
        names.add("LLMResource")
        model_argument = f"llm=LLMResource(model={json.dumps(fields.model)})"
    if module == "ondine_dagster":
        names.add(name)
    else:
        imports.append(f"from {module} import {name}")
    imports.append(f"from ondine_dagster import {', '.join(sorted(names))}")
    return _PYTHON.format(
        imports="\n".join(sorted(imports)),
        name=name,
        key=json.dumps(key),
        upstream=json.dumps(fields.upstream.split("/")),
        model_argument=model_argument,
    )
