"""A model in MLX that writes many replies at once, each a token further at every step.

All of it belongs to the MLX thread. Nothing waits for a batch: a call joins those being answered whenever it comes, and
leaves when it is answered or cancelled.
"""

from __future__ import annotations

import secrets
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ondine_core.errors import ProviderError, RefusedError
from ondine_core.providers.mlx.chat_template import decode, encode
from ondine_core.providers.mlx.failures import broken_off
from ondine_core.providers.mlx.generation import PrefixCache, start_generator
from ondine_core.providers.mlx.sampling import Grammars, Sampling, make_picker, make_rules
from ondine_core.types.values import Call, Message, Reply, Usage

__all__ = ["MOST_AT_ONCE", "Ask", "Weights", "Work", "Writer"]

MOST_AT_ONCE = 64
_PARAGRAPH = "\n\n"
_FILES = ("*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken", "model*.safetensors")


@dataclass(frozen=True, slots=True)
class Weights:
    """What is loaded once a process.

    Args:
        name: A folder, or a repository of Hugging Face.
        revision: Commit, branch or tag of the repository; `None` for the newest.
        adapter_path: Folder of a LoRA adapter to lay over it.
        token: For a repository that is not public; `None` for what this machine is logged in with.
    """

    name: str
    revision: str | None = None
    adapter_path: str | None = None
    token: str | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True, slots=True, eq=False)
class Ask:
    """A call on its way to the model; cancelling `reply` ends it."""

    call: Call
    sampling: Sampling
    max_output_tokens: int
    think: bool = False
    reply: Future[Reply] = field(default_factory=Future)


@dataclass(frozen=True, slots=True)
class Work:
    """What a model has done since it was loaded, for all who share it.

    Args:
        steps: Computations; each brings every reply that is being written one token further.
        output_tokens: Tokens written; `output_tokens / steps` replies were written at once on average.
        most_at_once: The most replies that were written at once.
    """

    steps: int = 0
    output_tokens: int = 0
    most_at_once: int = 0


@dataclass(slots=True)
class _Draft:
    """A reply that is being written; one with a detokenizer ends with its first paragraph."""

    ask: Ask
    usage: Usage
    detokenizer: Any
    tokens: list[int] = field(default_factory=list)


class Writer:
    """A loaded model.

    Args:
        weights: What to load. A repository is downloaded unless it is on this machine.

    Attributes:
        weights: What is loaded.
        work: What was done with it.
    """

    def __init__(self, weights: Weights) -> None:
        folder, no_code = str(_fetch(weights)), {"trust_remote_code": False}
        import mlx.core as mx  # after the download, during which a process can still end without MLX's consent
        from mlx_lm import load

        if mx.default_device().type == mx.cpu:
            mx.disable_compile()  # there it means starting a C++ compiler, seconds a formula, and is no faster
        loaded: Any = load(folder, no_code, adapter_path=weights.adapter_path, return_config=True)
        self._model, self._tokenizer, config = loaded
        self._window = config.get("text_config", config).get("max_position_embeddings")
        self._vocabulary = len(self._tokenizer.get_vocab())
        self._ends = sorted(self._tokenizer.eos_token_ids)
        self._grammars = Grammars(self._tokenizer, self._ends)
        self._beginnings = PrefixCache(self._model)
        self._generator = start_generator(self._model, self._ends, MOST_AT_ONCE)
        self._drafts: dict[int, _Draft] = {}
        self.weights, self.work = weights, Work()

    @property
    def is_busy(self) -> bool:
        """Whether replies are being written."""
        return bool(self._drafts)

    def begin(self, ask: Ask) -> None:
        """Take a call in."""
        if ask.reply.cancelled():
            return
        try:
            tokens = encode(self._tokenizer, ask.call, think=ask.think)
        except BaseException as error:  # noqa: BLE001  (templates are the model's own code, and Rust may panic)
            fault = type(error).__name__
            _settle(
                ask.reply, RefusedError(f"The model's chat template or tokenizer does not take this call ({fault}).")
            )
            return
        try:
            self._insert(ask, tokens)
        except ProviderError as error:
            _settle(ask.reply, error)
        except BaseException as error:  # noqa: BLE001
            _settle(ask.reply, broken_off(error, 1))

    def _insert(self, ask: Ask, tokens: list[int]) -> None:
        most = ask.max_output_tokens
        if self._window is not None and len(tokens) + most > self._window:
            most = self._window - len(tokens)
            if most < 1:
                raise RefusedError(f"The prompt has {len(tokens)} tokens; the model's window is {self._window}.")
        schema = ask.call.json_schema
        grammar = self._grammars.rule(schema) if schema is not None else None
        known, state = self._beginnings.find(tokens)
        (number,) = self._generator.insert(
            [tokens[known:]],
            [most],
            caches=[state],
            all_tokens=[tokens[:known]],
            samplers=[make_picker(ask.sampling, self._vocabulary)],
            logits_processors=[[*make_rules(ask.sampling), *([grammar] if grammar else [])]],
        )
        # A base model goes on to make up the next question unless something ends its answer.
        ends_itself = grammar is not None or self._tokenizer.has_chat_template
        detokenizer = None if ends_itself else self._tokenizer.detokenizer
        self._drafts[number] = _Draft(ask, Usage(len(tokens), known), detokenizer)

    def step(self) -> None:
        """Write one more token of every reply, and read some more of the prompts that have come."""
        gone = [number for number, draft in self._drafts.items() if draft.ask.reply.cancelled()]
        for number in gone:
            del self._drafts[number]
        try:
            if gone:
                self._generator.remove(gone)
            written = self._generator.next()[1] if self._drafts else ()
        except BaseException as error:  # noqa: BLE001  (whatever it is, the calls must hear of it and the thread go on)
            self._break_off(error)
            return
        if written:
            done, count = self.work, len(written)
            self.work = Work(done.steps + 1, done.output_tokens + count, max(done.most_at_once, count))
        for token in written:
            self._add(token.uid, token.token, token.finish_reason)

    def _add(self, number: int, token: int, finish_reason: str | None) -> None:
        draft = self._drafts[number]
        if finish_reason != "stop":  # then it is the end itself
            draft.tokens.append(token)
            if draft.detokenizer is not None:
                draft.detokenizer.add_token(token)
                if _PARAGRAPH in draft.detokenizer.text:
                    if finish_reason is None:
                        self._generator.remove([number])
                    finish_reason = "stop"
        if finish_reason is not None:
            del self._drafts[number]
            _settle(draft.ask.reply, self._reply(draft, finish_reason))

    def _reply(self, draft: _Draft, finish_reason: str) -> Reply:
        text = decode(self._tokenizer, draft.tokens)
        if draft.detokenizer is not None:
            text = text.partition(_PARAGRAPH)[0]
        usage = replace(draft.usage, output_tokens=len(draft.tokens))
        if self._tokenizer.has_thinking and self._tokenizer.think_end in text:
            thought, mark, text = text.rpartition(self._tokenizer.think_end)
            usage = replace(usage, reasoning_tokens=min(self.count_tokens(thought + mark), usage.output_tokens))
        return Reply(text.strip(), usage, finish_reason, f"mlx-{secrets.token_hex(8)}")

    def _break_off(self, error: BaseException) -> None:
        """Nobody knows what state an error leaves the drafts in, so all of them end."""
        drafts = list(self._drafts.values())
        self._drafts.clear()
        self._generator.close()
        self.forget()
        self._generator = start_generator(self._model, self._ends, MOST_AT_ONCE)
        for draft in drafts:
            _settle(draft.ask.reply, broken_off(error, len(drafts)))

    def warm_up(self) -> None:
        """Say a word, so that the first call does not wait for what is done only once."""
        self.begin(Ask(Call((Message("user", "Hello"),)), Sampling(), max_output_tokens=1))

    def count_tokens(self, text: str) -> int:
        """Tokens of `text`."""
        return len(self._tokenizer.encode(text, add_special_tokens=False))

    def forget(self) -> None:
        """Free the memory that only makes the next calls faster."""
        import mlx.core as mx

        self._beginnings.clear()
        mx.clear_cache()

    def unload(self) -> None:
        """Free all memory; the writer is of no use afterwards."""
        self._generator.close()
        self._model = self._generator = None
        self._beginnings = PrefixCache(None)
        self.forget()


def _settle(reply: Future[Reply], outcome: Reply | ProviderError) -> None:
    if not reply.set_running_or_notify_cancel():
        return
    if isinstance(outcome, Reply):
        reply.set_result(outcome)
    else:
        reply.set_exception(outcome)


def _fetch(weights: Weights) -> Path:
    folder = Path(weights.name).expanduser()
    if folder.is_dir():
        return folder
    from huggingface_hub import snapshot_download

    found = snapshot_download(weights.name, revision=weights.revision, token=weights.token, allow_patterns=list(_FILES))
    return Path(found)
