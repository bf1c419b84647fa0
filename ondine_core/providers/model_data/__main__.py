"""`python -m ondine_core.providers.model_data [FOLDER]`: copy the used part of the installed litellm's data.

Without a folder it replaces the copy in this package, which is for maintainers of Ondine; users upgrade litellm.
"""

from __future__ import annotations

import datetime as dt
import re
import shutil
import sys
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import orjson

from ondine_core.providers.model_data import (
    ENCODINGS,
    LITELLM_PRICES,
    PRICES,
    PROVIDERS,
    SOURCE,
    installed_litellm,
    read_provider_names,
)

_LITELLM_ENCODINGS = "litellm_core_utils/tokenizers"
_NO_MODELS = ("sample_spec", "fallback_generalizations")
_MODES = ("chat", "completion", "responses", None)
_USED = re.compile(
    r".*cost.*|max_.*|.*pricing|litellm_provider|mode|deprecation_date|supports_\w+|thinking_\w+|prompt_cache_\w+"
    r"|alias_of|reasoning_effort_levels|\w+_multiplier(?:_\w+)?"
)
_TOKENIZERS = (
    "9b5ad71b2ce5302211f9c61530b329a4922fc6a4",  # cl100k_base; the name is the hash of the address tiktoken asks
    "fb374d419588a4632f3f557e76b4b70aebbca790",  # o200k_base
)


def main(folder: Path) -> int:
    """Write the copy into `folder`; returns the exit code."""
    litellm = installed_litellm()
    if litellm is None:
        sys.stderr.write("litellm is not installed here: pip install litellm\n")
        return 1
    encodings = folder / ENCODINGS.name
    encodings.mkdir(parents=True, exist_ok=True)
    models = orjson.loads((litellm / LITELLM_PRICES).read_bytes())
    # A model a line, so a diff shows changes of prices.
    lines = [f"{orjson.dumps(name).decode()}:{orjson.dumps(facts).decode()}" for name, facts in select(models).items()]
    (folder / PRICES).write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
    (folder / PROVIDERS).write_bytes(orjson.dumps(sorted(read_provider_names(litellm)), option=orjson.OPT_INDENT_2))
    for name in _TOKENIZERS:
        shutil.copyfile(litellm / _LITELLM_ENCODINGS / name, encodings / name)
    about = {"version": version("litellm"), "copied_on": dt.datetime.now(dt.UTC).date().isoformat()}
    (folder / SOURCE).write_bytes(orjson.dumps(about))
    return 0


def select(models: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """The used facts of each model that answers in text."""
    return {
        name: {key: fact for key, fact in facts.items() if _USED.fullmatch(key)}
        for name, facts in sorted(models.items())
        if facts.get("mode") in _MODES and name not in _NO_MODELS
    }


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]) if sys.argv[1:] else Path(__file__).parent))
