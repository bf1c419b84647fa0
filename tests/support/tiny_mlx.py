"""Models for MLX that need no download: random weights and a tokenizer, written to a folder.

Their replies are random, but files, tokenizer, chat template and computation are those of real models. Each token is a
printable character, so that any text can be converted to tokens and back.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from string import ascii_letters, digits, punctuation
from typing import Any

import numpy as np
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from ondine_core.providers.mlx.thread import on_mlx_thread

__all__ = ["CHAT_TEMPLATE", "END", "write_adapter", "write_llama_4", "write_tiny_model"]

END = "<|end|>"
"""The end-of-turn token."""

CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% if not enable_thinking %}<think></think>{% endif %}{% endif %}"
)
_SPECIAL = (END, "<|user|>", "<|assistant|>", "<|system|>")
_THINKING = ("<think>", "</think>")
_CHARACTERS = ascii_letters + digits + punctuation + " \n"
_WIDTH, _HEADS, _LAYERS, _INNER = 48, 4, 2, 96


def write_tiny_model(
    folder: Path,
    *,
    chat_template: str | None = CHAT_TEMPLATE,
    token_biases: Mapping[str, float] | None = None,
    **config: Any,
) -> Path:
    """Write a model of the Llama family into the new folder `folder`.

    Args:
        folder: The folder to write.
        chat_template: The model's chat template; `None` makes it a base model.
        token_biases: Bias of tokens (1000: the model writes only this token; -1000: never).
        config: Fields of `config.json` that differ.
    """
    vocabulary = _write_tokenizer(folder, chat_template)
    shape = {
        "model_type": "llama",
        "hidden_size": _WIDTH,
        "num_hidden_layers": _LAYERS,
        "intermediate_size": _INNER,
        "num_attention_heads": _HEADS,
        "num_key_value_heads": _HEADS,
        "rms_norm_eps": 1e-5,
        "vocab_size": len(vocabulary),
        "max_position_embeddings": 8192,
        "tie_word_embeddings": False,
        "eos_token_id": vocabulary[END],
    }
    (folder / "config.json").write_text(json.dumps(shape | config))
    biases = {vocabulary[token]: bias for token, bias in (token_biases or {}).items()}
    save_file(dict(_weights(len(vocabulary), biases)), folder / "model.safetensors", metadata={"format": "mlx"})
    return folder


def write_adapter(folder: Path) -> Path:
    """Write a LoRA adapter for tiny models into `folder`."""
    folder.mkdir(parents=True)
    rank, part = 2, "self_attn.q_proj"
    settings = {"rank": rank, "scale": 20.0, "dropout": 0.0, "keys": [part]}
    config = {"fine_tune_type": "lora", "num_layers": _LAYERS, "lora_parameters": settings}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    weights = {}
    for layer in range(_LAYERS):
        weights[f"model.layers.{layer}.{part}.lora_a"] = np.ones((_WIDTH, rank), np.float32)
        weights[f"model.layers.{layer}.{part}.lora_b"] = np.ones((rank, _WIDTH), np.float32)
    save_file(weights, folder / "adapters.safetensors")
    return folder


def write_llama_4(folder: Path) -> Path:
    """Write a model of the Llama 4 family into `folder`, which mlx-lm cannot batch."""
    vocabulary = _write_tokenizer(folder, CHAT_TEMPLATE)
    text = {
        "model_type": "llama4_text",
        "attention_bias": False,
        "attention_chunk_size": 64,
        "head_dim": 8,
        "hidden_size": 32,
        "interleave_moe_layer_step": 1,
        "intermediate_size": 32,
        "intermediate_size_mlp": 32,
        "max_position_embeddings": 8192,
        "num_attention_heads": 4,
        "num_experts_per_tok": 1,
        "num_hidden_layers": 4,
        "num_key_value_heads": 4,
        "num_local_experts": 2,
        "rms_norm_eps": 1e-5,
        "rope_scaling": None,
        "rope_theta": 10000.0,
        "use_qk_norm": True,
        "vocab_size": len(vocabulary),
    }
    config = {"model_type": "llama4", "text_config": text, "eos_token_id": vocabulary[END]}
    (folder / "config.json").write_text(json.dumps(config))

    async def write() -> None:
        from mlx_lm.models.llama4 import Model, ModelArgs

        Model(ModelArgs.from_dict(config)).save_weights(str(folder / "model.safetensors"))

    on_mlx_thread(write()).result()
    return folder


def _weights(size: int, token_biases: Mapping[int, float]) -> Iterator[tuple[str, np.ndarray]]:
    """Random weights, large enough that rounding errors do not change the token that is chosen."""
    rng = np.random.default_rng(11)

    def random(*shape: int) -> np.ndarray:
        return (rng.standard_normal(shape) * 2 / np.sqrt(shape[-1])).astype(np.float32)

    embedding, head = random(size, _WIDTH), random(size, _WIDTH) * 2
    # The first coordinate is the same for all texts, so the head's weight for it acts as a bias.
    embedding[:, 0], head[:, 0] = 1, 0
    for token, bias in token_biases.items():
        head[token, 0] = bias
    yield from {"model.embed_tokens.weight": embedding, "lm_head.weight": head}.items()
    yield "model.norm.weight", np.ones(_WIDTH, np.float32)
    for layer in (f"model.layers.{number}" for number in range(_LAYERS)):
        out, down = random(_WIDTH, _WIDTH), random(_WIDTH, _INNER)
        out[0], down[0] = 0, 0
        yield f"{layer}.self_attn.o_proj.weight", out
        yield f"{layer}.mlp.down_proj.weight", down
        yield from ((f"{layer}.self_attn.{part}_proj.weight", random(_WIDTH, _WIDTH)) for part in "qkv")
        yield from ((f"{layer}.mlp.{part}_proj.weight", random(_INNER, _WIDTH)) for part in ("gate", "up"))
        for norm in ("input_layernorm", "post_attention_layernorm"):
            yield f"{layer}.{norm}.weight", np.ones(_WIDTH, np.float32)


def _write_tokenizer(folder: Path, chat_template: str | None) -> Mapping[str, int]:
    """Write a tokenizer with a token for each character, encoded by bytes as in GPT-2; returns the token ids."""
    folder.mkdir(parents=True)
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    encoded = [byte_level.pre_tokenize_str(character)[0][0] for character in _CHARACTERS]
    tokens = (*_SPECIAL, *_THINKING, *encoded)
    tokenizer = Tokenizer(models.BPE(vocab={token: number for number, token in enumerate(tokens)}, merges=[]))
    tokenizer.pre_tokenizer = byte_level
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in _SPECIAL])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in _THINKING])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END, "chat_template": chat_template}
    written = {name: value for name, value in settings.items() if value is not None}
    (folder / "tokenizer_config.json").write_text(json.dumps(written))
    return {token: number for number, token in enumerate((*_SPECIAL, *_THINKING, *_CHARACTERS))}
