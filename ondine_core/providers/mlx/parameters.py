"""What can be said about an MLX model in `params` and `settings`, checked where it is said.

`params` decide what is answered, so they are part of an answer's key; `settings` only say how it is come by.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

from ondine_core.errors import ConfigError
from ondine_core.providers.mlx.sampling import Sampling
from ondine_core.providers.mlx.writer import MOST_AT_ONCE, Weights
from ondine_core.providers.settings import check_settings
from ondine_core.types.values import Json, ModelSpec

__all__ = ["Options", "read_options"]

_MAX_OUTPUT_TOKENS = 2048
_AT_ONCE = 16


@dataclass(frozen=True, slots=True)
class Options:
    """How an MLX model is asked.

    Args:
        weights: What to load.
        sampling: How tokens are picked.
        max_output_tokens: Most tokens a reply may have.
        think: Whether a model that can think before it answers does so.
        max_concurrency: Most calls worth having in flight.
        warm_up: Load the model when connecting rather than at the first call, and let it say a word.
    """

    weights: Weights
    sampling: Sampling
    max_output_tokens: int
    think: bool
    max_concurrency: int
    warm_up: bool


@dataclass(frozen=True, slots=True)
class _Rule:
    check: Callable[[Any], bool]
    words: str


def _number(low: float, high: float = float("inf"), *, above: bool = False) -> Callable[[Any], bool]:
    def check(value: Any) -> bool:
        is_number = isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)
        return is_number and (value > low if above else value >= low) and value <= high

    return check


def _whole(low: int, high: float = float("inf")) -> Callable[[Any], bool]:
    return lambda value: type(value) is int and low <= value <= high


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


_PARAMS: Mapping[str, _Rule] = {
    "top_p": _Rule(_number(0, 1, above=True), "a number above 0 and at most 1"),
    "top_k": _Rule(_whole(0), "a whole number, 0 for no bound"),
    "min_p": _Rule(_number(0, 1), "a number from 0 to 1"),
    "seed": _Rule(_whole(0, 2**64 - 1), "a whole number that is not negative"),
    "repetition_penalty": _Rule(_number(0, above=True), "a number above 0; 1 changes nothing"),
    "repetition_context_size": _Rule(_whole(1), "a whole number of tokens"),
    "enable_thinking": _Rule(_is_flag, "True or False"),
    "revision": _Rule(_is_text, "a commit, branch or tag"),
    "adapter_path": _Rule(_is_text, "the path of a folder"),
}
_SETTINGS: Mapping[str, _Rule] = {
    "warm_up": _Rule(_is_flag, "True or False"),
    "max_concurrency": _Rule(_whole(1, MOST_AT_ONCE), f"a whole number from 1 to {MOST_AT_ONCE}"),
}
_FIELDS: Mapping[str, _Rule] = {
    "temperature": _Rule(_number(0), "a number that is not negative"),
    "max_output_tokens": _Rule(_whole(1), "a whole number above 0"),
    "timeout_s": _Rule(_number(0, above=True), "a number of seconds"),
}


def read_options(spec: ModelSpec, name: str) -> Options:
    """What `spec` says of the model `name`.

    Raises:
        ConfigError: It says something that is not known or not valid.
    """
    given = {field: value for field in _FIELDS if (value := getattr(spec, field)) is not None}
    _check("", given, _FIELDS)
    _check("params", spec.request_params, _PARAMS)
    check_settings(spec, _SETTINGS)
    _check("settings", spec.settings, _SETTINGS)
    if spec.base_url is not None:
        raise ConfigError(f"model={spec.model!r} runs in this process and takes no base_url.")
    params = dict(spec.request_params)
    adapter = params.pop("adapter_path", None)
    if adapter is not None and not (Path(adapter).expanduser() / "adapter_config.json").is_file():
        raise ConfigError(f"params['adapter_path']={adapter!r} is no folder of a LoRA adapter (adapter_config.json).")
    weights = Weights(
        name,
        params.pop("revision", None),
        adapter and str(Path(adapter).expanduser()),
        (spec.api_key or "").strip() or None,
    )
    think = params.pop("enable_thinking", False)
    return Options(
        weights,
        Sampling(spec.temperature or 0.0, **params),
        spec.max_output_tokens or _MAX_OUTPUT_TOKENS,
        think,
        spec.settings.get("max_concurrency", _AT_ONCE),
        spec.settings.get("warm_up", False),
    )


def _check(where: str, given: Mapping[str, Json], rules: Mapping[str, _Rule]) -> None:
    for name, value in given.items():
        what = f"{where}[{name!r}]" if where else name
        if name not in rules:
            raise ConfigError(f"{what} is nothing that MLX knows; valid are {', '.join(rules)}.")
        if not rules[name].check(value):
            raise ConfigError(f"{what}={value!r} is not valid; give {rules[name].words}.")
