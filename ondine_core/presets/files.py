"""Reads a team's own presets from a YAML file: names, and below each name the fields of a `ModelSpec`.

Such a file is committed and shared, so a key in it is refused. Nothing in it is executed or expanded.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ondine_core.errors import ConfigError
from ondine_core.presets.catalog import FIELDS, change, name_unknown
from ondine_core.types.values import ModelSpec

_FIELDS = tuple(name for name in FIELDS if name != "api_key")
_KEY_NAME = re.compile(r"(?:api[-_]?key|token|secret|password|authorization|credentials?)$", re.IGNORECASE)
_KEY = re.compile(r"\s*(?:bearer\s|(?:sk|gsk|tgp|xai)[-_][\w-]{20})", re.IGNORECASE)


def load_presets(path: str | Path) -> Mapping[str, ModelSpec]:
    """Read presets from a YAML file; `preset` takes them as its second argument.

    Example of a file:
        house-llama:
          model: openai_compatible/llama-3.3-70b
          base_url: https://llm.example.com/v1
          provider_name: house
          temperature: 0

    Raises:
        ConfigError: The file cannot be read, is not such a file, or contains a key; the message says where.
    """
    if not isinstance(path, str | Path):
        raise ConfigError(f"The path of a file of presets is a {type(path).__name__}; give a text.")
    presets = {}
    for name, model_fields in _read(Path(path)).items():
        where = f"{str(path)!r}: preset {name!r}"
        if not isinstance(name, str) or not name:
            raise ConfigError(f"{where}: the name is not a text; write it in quotes.")
        if not isinstance(model_fields, dict):
            raise ConfigError(f"{where}: expected the fields of a model, such as 'model: openai/gpt-4o-mini'.")
        try:
            key_place = next(_key_places(model_fields), None)
        except RecursionError:
            raise ConfigError(
                f"{where}: an alias (*name) refers to what contains it; write the value itself."
            ) from None
        if key_place is not None:
            raise ConfigError(
                f"{where}: {key_place} holds a key, and keys do not belong in files. Remove it and set the provider's "
                "environment variable (OPENAI_API_KEY, ...), or give api_key=... to preset() or to the resource."
            )
        for field in model_fields:
            if field not in _FIELDS:
                raise ConfigError(f"{where}: {name_unknown(str(field), _FIELDS)}")
        if "model" not in model_fields:
            raise ConfigError(f"{where}: model is missing; write provider/name, as in 'openai/gpt-4o-mini'.")
        presets[name] = change(ModelSpec("openai/gpt-4o-mini"), model_fields, where)
    return MappingProxyType(presets)


def _key_places(value: Any, place: str = "") -> Iterator[str]:
    """The places in the fields of a preset whose name or value looks like a key."""
    if isinstance(value, dict):
        for name, child in value.items():
            inner = f"{place}.{name}" if place else str(name)
            if _KEY_NAME.search(str(name)):
                yield inner
            else:
                yield from _key_places(child, inner)
    elif isinstance(value, list):
        for index, child in enumerate(value):
            yield from _key_places(child, f"{place}.{index}")
    elif isinstance(value, str) and _KEY.match(value):
        yield place


def _read(path: Path) -> dict[Any, Any]:
    import yaml

    try:
        text = path.read_text(encoding="utf-8")
        tree = yaml.compose(text, Loader=yaml.SafeLoader)
        content = yaml.safe_load(text)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise ConfigError(f"The presets in {str(path)!r} cannot be read: {reason}.") from error
    except RecursionError:
        raise ConfigError(f"{str(path)!r} is nested too deeply to be read.") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" in line {mark.line + 1}" if mark else ""
        # Not chained: the parser's own message quotes the line, which may hold a key.
        raise ConfigError(f"{str(path)!r} is not YAML: {getattr(error, 'problem', 'unreadable')}{line}.") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"{str(path)!r}: expected names of presets with the fields of a model below each.")
    _check_twice(tree, str(path))
    return content


def _check_twice(tree: Any, path: str) -> None:
    """Refuse a preset or a field that is written twice, of which YAML would silently take the last."""
    levels = [(tree, "preset"), *((node, f"preset {name.value!r}: field") for name, node in tree.value)]
    for node, kind in levels:
        if not isinstance(node.value, list):
            continue
        names = [pair[0].value for pair in node.value if isinstance(pair, tuple)]
        for name in names:
            if names.count(name) > 1:
                raise ConfigError(f"{path!r}: {kind} {name!r} is given twice.")
