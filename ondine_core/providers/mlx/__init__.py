"""MLX inside this process: open models on a Mac's graphics processor, or on Linux, without a key, a server or a bill.

A model loads once a process, and the replies to all concurrent calls are generated together, which takes little longer
than one reply. The default temperature is 0. If two tokens are almost equally likely, the choice may still differ from
batch to batch, as on any server that batches.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

from ondine_core.errors import ConfigError, FatalError, ProviderError, TransientError
from ondine_core.providers.context_window import estimate_tokens
from ondine_core.providers.mlx.chat_template import has_chat_template
from ondine_core.providers.mlx.failures import INSTALL, load_error
from ondine_core.providers.mlx.parameters import Options, read_options
from ondine_core.providers.mlx.thread import close_writer, on_mlx_thread, open_writer
from ondine_core.providers.mlx.writer import Weights, Work, Writer
from ondine_core.types.values import Call, Message, ModelSpec, Reply

__all__ = ["MlxModel", "connect_mlx"]

_REPOSITORY = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*", re.ASCII)


def connect_mlx(spec: ModelSpec, name: str) -> MlxModel:
    """Connect the model `name`: a folder, or a repository of Hugging Face such as `mlx-community/Qwen3-4B-4bit`.

    The module `parameters` has its `params` and `settings`. `api_key` is a token of Hugging Face, for repositories that
    are not public.

    Raises:
        ConfigError: A package is missing, there is no such folder, or an option is not valid.
    """
    missing = [package for package in ("mlx", "mlx_lm") if find_spec(package) is None]
    if missing:
        raise ConfigError(f"model={spec.model!r} needs the package {missing[0].replace('_', '-')}: {INSTALL}")
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ConfigError(f"model={spec.model!r}: there is no model in the folder {name!r} (no config.json).")
        name = str(folder.resolve())
    elif not _REPOSITORY.fullmatch(name):
        raise ConfigError(
            f"model={spec.model!r}: there is no folder {name!r}; give the path of one, or a repository of Hugging Face "
            "such as 'mlx/mlx-community/Qwen3-4B-4bit'."
        )
    options = read_options(spec)
    token = (spec.api_key or "").strip() or None
    return MlxModel(Weights(name, options.params.revision, options.params.adapter_path, token), options)


class MlxModel:
    """A model whose weights all objects of this process share; see `ChatModel`."""

    def __init__(self, weights: Weights, options: Options) -> None:
        self._weights, self._options = weights, options
        self._opening: Future[Writer] | None = None
        self.max_concurrency: int | None = options.settings.max_concurrency
        # A base model only continues a text and cannot answer several rows at once.
        self.max_batch_size: int | None = None if has_chat_template(weights.name) else 1
        if options.settings.warm_up:
            self._opening = on_mlx_thread(self._open())

    async def __call__(self, call: Call) -> Reply:
        """Ask once; see `ChatModel`."""
        if self._opening is None:
            self._opening = on_mlx_thread(self._open())
        # Several calls may wait for it, so cancelling one must not cancel it.
        writer = await asyncio.shield(asyncio.wrap_future(self._opening))
        started, timeout_s = time.perf_counter(), self._options.timeout_s
        try:
            async with asyncio.timeout(timeout_s):
                reply = await asyncio.wrap_future(on_mlx_thread(writer.write(call, self._options)))
        except TimeoutError:
            raise TransientError(
                f"The model did not finish within {timeout_s:g} s; raise timeout_s, or lower max_output_tokens "
                "or max_concurrency.",
                kind="overloaded",
            ) from None
        return replace(reply, latency_s=time.perf_counter() - started)

    @property
    def work(self) -> Work:
        """What the model has done since it was loaded, for all callers of this process."""
        writer = self._writer()
        return writer.work if writer else Work()

    async def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """The number of tokens of each text by the model's tokenizer; an estimate while the model is not loaded."""
        writer = self._writer()
        if writer is None:
            return [estimate_tokens(text) for text in texts]
        return await asyncio.wrap_future(on_mlx_thread(writer.count_tokens(texts)))

    async def aclose(self) -> None:
        """Release the model; it stays loaded until this process needs another one."""
        opening, self._opening = self._opening, None
        if opening is not None:
            with suppress(FatalError):
                writer = await asyncio.shield(asyncio.wrap_future(opening))
                await asyncio.wrap_future(on_mlx_thread(close_writer(writer)))

    async def _open(self) -> Writer:
        try:
            writer = await open_writer(self._weights)
        except BaseException as error:
            raise load_error(self._weights.name, error) from error
        if self._options.settings.warm_up:
            hello = Call((Message("user", "Hello"),))
            with suppress(ProviderError):  # the first call will raise it
                await writer.write(hello, self._options.model_copy(update={"max_output_tokens": 1}))
        return writer

    def _writer(self) -> Writer | None:
        opening = self._opening
        return opening.result() if opening and opening.done() and not opening.exception() else None
