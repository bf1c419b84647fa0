"""MLX inside this process: open models on a Mac's graphics processor, or on Linux, without a key, a server or a bill.

A model loads once a process, and all who ask it share its batches: replies are written side by side, so many calls at
once take little longer than one. The temperature is 0 unless another is asked for. Where two tokens are all but equally
likely the choice may still differ from batch to batch, as on any server that batches.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

from ondine_core.errors import ConfigError, TransientError
from ondine_core.providers.context_window import estimate_tokens
from ondine_core.providers.mlx.chat_template import has_chat_template
from ondine_core.providers.mlx.failures import INSTALL, not_loaded
from ondine_core.providers.mlx.parameters import Options, read_options
from ondine_core.providers.mlx.thread import close_writer, on_mlx_thread, open_writer
from ondine_core.providers.mlx.writer import Ask, Work, Writer
from ondine_core.types.values import Call, ModelSpec, Reply

__all__ = ["MlxModel", "connect_mlx"]

_REPOSITORY = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*", re.ASCII)


def connect_mlx(spec: ModelSpec, name: str) -> MlxModel:
    """The model `name`: a folder, or a repository of Hugging Face such as `mlx-community/Qwen3-4B-4bit`.

    Besides temperature and the bound on output tokens, `params` may have `top_p`, `top_k`, `min_p`, `seed`,
    `repetition_penalty`, `repetition_context_size`, `enable_thinking` (off by default), `revision` and `adapter_path`;
    `settings` may have `warm_up` (load now, not at the first call) and `max_concurrency` (16 by default). `api_key` is
    a token of Hugging Face, for repositories that are not public.

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
    return MlxModel(read_options(spec, name), spec.max_call_s)


class MlxModel:
    """One user of a model that this process shares; see `ChatModel`.

    Args:
        options: Which model, and how it is asked.
        timeout_s: Seconds a reply may take, once the model is loaded.
    """

    def __init__(self, options: Options, timeout_s: float) -> None:
        self._options, self._timeout_s = options, timeout_s
        self._opening: Future[Writer] | None = None
        self.max_concurrency: int | None = options.max_concurrency
        # A base model continues a text; a list of tasks is beyond it.
        self.max_batch_size: int | None = None if _chats(options.weights.name) else 1
        if options.warm_up:
            self._opening = on_mlx_thread(self._open)

    async def __call__(self, call: Call) -> Reply:
        """Ask once; see `ChatModel`."""
        writer = await self._opened()
        options, started = self._options, time.perf_counter()
        ask = Ask(call, options.sampling, options.max_output_tokens, options.think)
        try:
            async with asyncio.timeout(self._timeout_s):
                on_mlx_thread(lambda: writer.begin(ask))
                reply = await asyncio.wrap_future(ask.reply)  # cancelling this ends the generation
        except TimeoutError:
            raise TransientError(
                f"The model did not finish within {self._timeout_s:g} s; raise timeout_s, or lower max_output_tokens "
                "or max_concurrency.",
                kind="overloaded",
            ) from None
        return replace(reply, latency_s=time.perf_counter() - started)

    @property
    def work(self) -> Work:
        """What the model has done since it was loaded, for all who share it."""
        writer = self._writer()
        return writer.work if writer else Work()

    async def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text: the tokenizer's own count, or an estimate while the model is not loaded."""
        writer = self._writer()
        if writer is None:
            return [estimate_tokens(text) for text in texts]
        return await asyncio.wrap_future(on_mlx_thread(lambda: [writer.count_tokens(text) for text in texts]))

    async def aclose(self) -> None:
        """Give the model back; it stays loaded until this process needs another one."""
        opening, self._opening = self._opening, None
        if opening is not None:
            await asyncio.wrap_future(on_mlx_thread(lambda: _close(opening)))

    async def _opened(self) -> Writer:
        if self._opening is None:
            self._opening = on_mlx_thread(self._open)
        opening = self._opening
        try:
            # Others wait for it, too, so a call that is cancelled leaves it be.
            return await asyncio.shield(asyncio.wrap_future(opening))
        except Exception as error:
            if self._opening is opening:
                self._opening = None
            raise not_loaded(self._options.weights.name, error) from error

    def _open(self) -> Writer:
        writer = open_writer(self._options.weights)
        if self._options.warm_up:
            writer.warm_up()
        return writer

    def _writer(self) -> Writer | None:
        opening = self._opening
        return opening.result() if opening and opening.done() and not opening.exception() else None


def _close(opening: Future[Writer]) -> None:
    if opening.exception() is None:
        close_writer(opening.result())


def _chats(name: str) -> bool:
    """Whether the model is made for conversations; one that is not on this machine yet is taken to be."""
    folder = Path(name)
    if not folder.is_dir():
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(name, "tokenizer_config.json")
        if not isinstance(found, str):
            return True
        folder = Path(found).parent
    return has_chat_template(folder)
