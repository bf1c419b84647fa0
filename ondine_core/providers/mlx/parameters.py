"""Validates the `params` and `settings` of an MLX model.

`params` affect the answer, so they are part of its key; `settings` affect only how it is computed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from ondine_core.errors import ConfigError
from ondine_core.types.values import ModelSpec

MAX_CONCURRENCY = 64


def _adapter_folder(path: str) -> str:
    folder = Path(path).expanduser()
    if not (folder / "adapter_config.json").is_file():
        raise ValueError("it is not a folder of a LoRA adapter (adapter_config.json)")
    return str(folder)


class _Checked(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class _Params(_Checked):
    """Which weights to use, and how to choose tokens; `top_k=0` means no limit, with `seed` a prompt has one reply."""

    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=0)
    min_p: float = Field(0.0, ge=0, le=1)
    seed: int | None = Field(None, ge=0, lt=2**64)
    repetition_penalty: float | None = Field(None, gt=0)
    repetition_context_size: int = Field(20, ge=1)
    enable_thinking: bool = False
    revision: str | None = Field(None, min_length=1)
    adapter_path: Annotated[str, AfterValidator(_adapter_folder)] | None = None


class _Settings(_Checked):
    """`warm_up` loads the model when it is connected and not at the first call."""

    warm_up: bool = False
    max_concurrency: int = Field(16, ge=1, le=MAX_CONCURRENCY)


class Options(_Checked):
    """All options of an MLX model; at temperature 0 the likeliest token is chosen."""

    temperature: float = Field(0.0, ge=0)
    max_output_tokens: int = Field(2048, ge=1)
    timeout_s: float = Field(gt=0)
    params: _Params
    settings: _Settings


def read_options(spec: ModelSpec) -> Options:
    """The options in `spec`.

    Raises:
        ConfigError: One is unknown or not valid, or `base_url` is set.
    """
    if spec.base_url is not None:
        raise ConfigError(f"model={spec.model!r} runs in this process and takes no base_url.")
    values: dict[str, Any] = {
        "temperature": spec.temperature,
        "max_output_tokens": spec.max_output_tokens,
        "timeout_s": spec.max_call_s,
        "params": dict(spec.request_params),
        "settings": dict(spec.settings),
    }
    try:
        return Options.model_validate({name: value for name, value in values.items() if value is not None})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field, *part = first["loc"]
        name = f"{field}[{part[0]!r}]" if part else field
        if first["type"] == "extra_forbidden":
            known = _Params.model_fields if field == "params" else _Settings.model_fields
            raise ConfigError(f"{name} is not an option of MLX; valid are {', '.join(known)}.") from None
        raise ConfigError(f"{name}={first['input']!r} is not valid: {first['msg']}.") from None
