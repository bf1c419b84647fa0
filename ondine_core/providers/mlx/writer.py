"""Generates many replies at once with mlx-lm's `BatchGenerator`; each step adds a token to every reply.

Everything here runs on the MLX thread. A call joins the batch at any time, and leaves it when it is answered or
cancelled.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ondine_core.errors import FatalError, RefusedError
from ondine_core.providers.mlx.chat_template import encode
from ondine_core.providers.mlx.failures import generation_error
from ondine_core.providers.mlx.next_token import Grammars, make_sampler
from ondine_core.providers.mlx.parameters import MAX_CONCURRENCY, Options
from ondine_core.providers.mlx.prefix_cache import PREFILL_TOKENS, PrefixCache
from ondine_core.types.values import Call, Reply, Usage

_PARAGRAPH = "\n\n"
_FILES = ("*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken", "model*.safetensors")


@dataclass(frozen=True, slots=True)
class Weights:
    """The weights to load: a folder or a repository, and the LoRA adapter to apply.

    `token` is for a repository that is not public; the default is the login of this machine.
    """

    name: str
    revision: str | None = None
    adapter_path: str | None = None
    token: str | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class Work:
    """What a model has done since it was loaded; a step adds a token to every reply that is being written."""

    steps: int = 0
    output_tokens: int = 0
    most_at_once: int = 0


@dataclass(slots=True)
class _Draft:
    """A reply that is being written; if it has a detokenizer, it ends after its first paragraph."""

    cached_input_tokens: int
    detokenizer: Any
    tokens: list[int] = field(default_factory=list)
    finish_reason: asyncio.Future[str] = field(default_factory=asyncio.Future)


class Writer:
    """A loaded model, which writes replies; a repository is downloaded unless it is on this machine."""

    def __init__(self, weights: Weights) -> None:
        folder, no_code = str(_fetch(weights)), {"trust_remote_code": False}
        import mlx.core as mx  # after the download, during which the process can be ended before MLX is loaded
        from mlx_lm import load
        from mlx_lm.models.cache import make_prompt_cache

        if mx.default_device().type == mx.cpu:
            mx.disable_compile()  # on a CPU it starts a C++ compiler for seconds a formula, and is not faster
        loaded: Any = load(folder, no_code, adapter_path=weights.adapter_path, return_config=True)
        self._model, self._tokenizer, config = loaded
        if not all(hasattr(layer, "merge") for layer in make_prompt_cache(self._model)):
            raise FatalError(
                f"model='mlx/{weights.name}': mlx-lm cannot batch models of this kind; run `mlx_lm.server`, and ask it "
                "as 'openai_compatible/...' with its base_url."
            )
        self._window = config.get("text_config", config).get("max_position_embeddings")
        self._vocabulary = len(self._tokenizer.get_vocab())
        self._ends = sorted(self._tokenizer.eos_token_ids)
        self._grammars = Grammars(self._tokenizer, self._ends)
        self._drafts: dict[int, _Draft] = {}
        self._stepping: asyncio.Task[None] | None = None
        self._start()
        self.weights, self.work = weights, Work()

    async def write(self, call: Call, options: Options) -> Reply:
        """Generate the reply to `call`; cancelling this ends the generation.

        Raises:
            RefusedError: The template does not take the call, or its prompt is longer than the window.
            ProviderError: Generation failed; see `generation_error`.
        """
        try:
            tokens = encode(self._tokenizer, call, think=options.params.enable_thinking)
        except BaseException as error:  # noqa: BLE001  (templates are the model's own code, and Rust may panic)
            fault = type(error).__name__
            raise RefusedError(f"The model's chat template or tokenizer does not take this call ({fault}).") from None
        window = self._window or len(tokens) + options.max_output_tokens
        if len(tokens) >= window:
            raise RefusedError(f"The prompt has {len(tokens)} tokens; the model's window is {window}.")
        try:
            number = self._insert(call, options, tokens, window)
        except BaseException as error:  # noqa: BLE001
            raise generation_error(error, 1) from None
        if self._stepping is None or self._stepping.done():
            self._stepping = asyncio.create_task(self._run_steps())
        draft = self._drafts[number]
        try:
            finish_reason = await draft.finish_reason
        finally:
            if self._drafts.pop(number, None):
                self._generator.remove([number])
        return self._reply(draft, Usage(len(tokens), draft.cached_input_tokens, len(draft.tokens)), finish_reason)

    def _insert(self, call: Call, options: Options, tokens: list[int], window: int) -> int:
        from mlx_lm.sample_utils import make_logits_processors

        params = options.params
        processors: list[Any] = make_logits_processors(
            repetition_penalty=params.repetition_penalty, repetition_context_size=params.repetition_context_size
        )
        grammar = None if call.json_schema is None else self._grammars.processor(call.json_schema)
        if grammar is not None:
            processors.append(grammar)
        known, state = self._prefixes.find(tokens)
        number: int = self._generator.insert(
            [tokens[known:]],
            [min(options.max_output_tokens, window - len(tokens))],
            caches=[state],
            all_tokens=[tokens[:known]],
            samplers=[make_sampler(options, self._vocabulary)],
            logits_processors=[processors],
        )[0]
        # A base model continues with an invented next question unless a stop sequence ends its answer.
        ends_itself = grammar is not None or self._tokenizer.has_chat_template
        self._drafts[number] = _Draft(known, None if ends_itself else self._tokenizer.detokenizer)
        return number

    async def _run_steps(self) -> None:
        """Generate token by token until no draft is left."""
        while self._drafts:
            try:
                self._step()
            except BaseException as error:  # noqa: BLE001  (the calls must not wait for ever)
                self._fail_drafts(error)
                return
            await asyncio.sleep(0)  # lets calls join and leave

    def _step(self) -> None:
        written = self._generator.next()[1]
        if written:
            done, count = self.work, len(written)
            self.work = Work(done.steps + 1, done.output_tokens + count, max(done.most_at_once, count))
        for token in written:
            self._add(token.uid, token.token, token.finish_reason)

    def _add(self, number: int, token: int, finish_reason: str | None) -> None:
        draft = self._drafts[number]
        if finish_reason != "stop":  # otherwise `token` is the end mark
            draft.tokens.append(token)
            if draft.detokenizer is not None:
                draft.detokenizer.add_token(token)
                if _PARAGRAPH in draft.detokenizer.text:
                    if finish_reason is None:
                        self._generator.remove([number])
                    finish_reason = "stop"
        if finish_reason is not None:
            del self._drafts[number]
            if not draft.finish_reason.done():
                draft.finish_reason.set_result(finish_reason)

    def _reply(self, draft: _Draft, usage: Usage, finish_reason: str) -> Reply:
        # Cleaning up would remove the space before a full stop from an answer.
        text: str = self._tokenizer.decode(draft.tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        if draft.detokenizer is not None:
            text = text.partition(_PARAGRAPH)[0]
        if self._tokenizer.has_thinking and self._tokenizer.think_end in text:
            thought, mark, text = text.rpartition(self._tokenizer.think_end)
            usage = replace(usage, reasoning_tokens=min(self._count(thought + mark), usage.output_tokens))
        return Reply(text.strip(), usage, finish_reason, f"mlx-{secrets.token_hex(8)}")

    def _fail_drafts(self, error: BaseException) -> None:
        """Fail all drafts and start afresh, since the generator's state after an error is not known."""
        drafts = list(self._drafts.values())
        self._drafts.clear()
        self._generator.close()
        self._start()
        for draft in drafts:
            if not draft.finish_reason.done():
                draft.finish_reason.set_exception(generation_error(error, len(drafts)))

    def _start(self) -> None:
        from mlx_lm.generate import BatchGenerator

        self._generator: Any = BatchGenerator(
            self._model,
            stop_tokens=[[token] for token in self._ends],
            completion_batch_size=MAX_CONCURRENCY,
            prefill_step_size=PREFILL_TOKENS,
        )
        self.drop_caches()

    async def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """The number of tokens of each text."""
        return [self._count(text) for text in texts]

    def _count(self, text: str) -> int:
        return len(self._tokenizer.encode(text, add_special_tokens=False))

    def drop_caches(self) -> None:
        """Free the memory that only makes later calls faster."""
        import mlx.core as mx

        self._prefixes = PrefixCache(self._model)
        mx.clear_cache()

    def unload(self) -> None:
        """Free all memory; the writer cannot be used afterwards."""
        self._generator.close()
        self._model = self._generator = None
        self.drop_caches()


def _fetch(weights: Weights) -> Path:
    folder = Path(weights.name).expanduser()
    if folder.is_dir():
        return folder
    from huggingface_hub import snapshot_download

    return Path(
        snapshot_download(weights.name, revision=weights.revision, token=weights.token, allow_patterns=list(_FILES))
    )
