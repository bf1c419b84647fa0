"""Offline data about models: prices, token limits, providers, and the files of OpenAI's tokenizers.

The data is litellm's, which keeps some 4,000 models up to date. This package has a copy of the part that is used, so
litellm (117 MB) is needed only to call providers through it. If an installed litellm is newer than the copy, its files
are read instead, without importing it: `pip install -U litellm` refreshes the prices. `python -m
ondine_core.providers.model_data` renews the copy.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import orjson

__all__ = ["ENCODINGS", "Source", "installed_litellm", "model_facts", "provider_names", "source"]

_HERE = Path(__file__).parent
ENCODINGS = _HERE / "encodings"
"""The folder in which tiktoken finds `cl100k_base` and `o200k_base` without a download."""
PRICES = "models.json"
PROVIDERS = "providers.json"
SOURCE = "source.json"
"""The other files of the copy."""
LITELLM_PRICES = "model_prices_and_context_window_backup.json"
_LITELLM_ENDPOINTS = "provider_endpoints_support_backup.json"
_LITELLM_CONFIGURED = "llms/openai_like/providers.json"


@dataclass(frozen=True, slots=True)
class Source:
    """The release of litellm that the data comes from.

    `copied_on` is the day of the copy in this package (ISO 8601), `None` for an installed litellm.
    """

    version: str
    copied_on: str | None = None

    def __str__(self) -> str:
        return f"litellm {self.version}" + (f", copied on {self.copied_on}" if self.copied_on else "")


@cache
def source() -> Source:
    """The release whose data is used: the installed litellm if it is newer than the copy, else the copy's."""
    copy = Source(**orjson.loads((_HERE / SOURCE).read_bytes()))
    if installed_litellm() is None:
        return copy
    try:
        installed = version("litellm")
    except PackageNotFoundError:  # only a folder of that name
        return copy
    return Source(installed) if _numbers(installed) > _numbers(copy.version) else copy


@cache
def model_facts() -> Mapping[str, Mapping[str, Any]]:
    """Prices (USD) and limits (tokens) by model, under the names of litellm's data file."""
    litellm = _newer_litellm()
    file = _HERE / PRICES if litellm is None else litellm / LITELLM_PRICES
    facts: dict[str, dict[str, Any]] = orjson.loads(file.read_bytes())
    return facts


@cache
def provider_names() -> frozenset[str]:
    """The names of the providers that litellm has."""
    litellm = _newer_litellm()
    if litellm is None:
        return frozenset(orjson.loads((_HERE / PROVIDERS).read_bytes()))
    return read_provider_names(litellm)


def _newer_litellm() -> Path | None:
    """The folder of the installed litellm, if its data is used."""
    return None if source().copied_on else installed_litellm()


@cache
def installed_litellm() -> Path | None:
    """The folder of the installed litellm, which is not imported; `None` without one."""
    package = find_spec("litellm")
    folders = package.submodule_search_locations if package else None
    return next((Path(folder) for folder in folders or () if (Path(folder) / LITELLM_PRICES).is_file()), None)


def read_provider_names(litellm: Path) -> frozenset[str]:
    """The names of the providers in the data files of the litellm in this folder.

    Providers without the mark for chat are included: in recent releases it is missing for Hugging Face, NVIDIA and
    others that litellm can chat with.
    """
    names = set(orjson.loads((litellm / _LITELLM_ENDPOINTS).read_bytes())["providers"])
    configured = litellm / _LITELLM_CONFIGURED
    if configured.is_file():
        names |= orjson.loads(configured.read_bytes()).keys()
    return frozenset(name.partition("/")[0] for name in names)


def _numbers(release: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", release)[:3])
