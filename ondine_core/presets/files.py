"""A team's own presets from a YAML file: names, and below each the fields of a `ModelSpec`.

The file is one that is committed and shared, so a key in it is refused. Nothing in it is ever executed or expanded.
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
        ConfigError: The file cannot be read, or is not such a file, or holds a key; the message says where.
    """
    if not isinstance(path, str | Path):
        raise ConfigError(f"The path of a file of presets is a {type(path).__name__}; give a text.")
    presets = {}
    for name, given in _read(Path(path)).items():
        where = f"{str(path)!r}: preset {name!r}"
        if not isinstance(name, str) or not name:
            raise ConfigError(f"{where}: the name is not a text; write it in quotes.")
        if not isinstance(given, dict):
            raise ConfigError(f"{where}: expected the fields of a model, such as 'model: openai/gpt-4o-mini'.")
        try:
            held = tuple(_keys(given))
        except RecursionError:
            raise ConfigError(
                f"{where}: an alias (*name) refers to what contains it; write the value itself."
            ) from None
        for field in held:
            raise ConfigError(
                f"{where}: {field} holds a key, and keys do not belong in files. Remove it and set the provider's "
                "environment variable (OPENAI_API_KEY, ...), or give api_key=... to preset() or to the resource."
            )
        for field in given:
            if field not in _FIELDS:
                raise ConfigError(f"{where}: {name_unknown(str(field), _FIELDS)}")
        if "model" not in given:
            raise ConfigError(f"{where}: model is missing; write provider/name, as in 'openai/gpt-4o-mini'.")
        presets[name] = change(ModelSpec("openai/gpt-4o-mini"), given, where)
    return MappingProxyType(presets)


def _keys(value: Any, place: str = "") -> Iterator[str]:
    """Where in the fields of a preset something is called like a key or looks like one."""
    if isinstance(value, dict):
        for name, child in value.items():
            inner = f"{place}.{name}" if place else str(name)
            if _KEY_NAME.search(str(name)):
                yield inner
            else:
                yield from _keys(child, inner)
    elif isinstance(value, list):
        for index, child in enumerate(value):
            yield from _keys(child, f"{place}.{index}")
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
    """Refuse a preset, or a field of one, that is there twice: YAML would silently take the last."""
    levels = [(tree, "preset"), *((node, f"preset {name.value!r}: field") for name, node in tree.value)]
    for node, kind in levels:
        if not isinstance(node.value, list):
            continue
        names = [pair[0].value for pair in node.value if isinstance(pair, tuple)]
        for name in names:
            if names.count(name) > 1:
                raise ConfigError(f"{path!r}: {kind} {name!r} is given twice.")
