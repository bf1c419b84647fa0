"""A vision encoder for llama.cpp that recognizes red, green and blue, for the embedded language model.

No package registry has a vision model, so this one is computed: its patches average the three colours, its single layer
forwards them unchanged, and its projection is solved so that a picture of one colour becomes the language model's own
embedding of that colour's name. llama.cpp decodes and encodes the picture, and the language model reads it as a word.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}
_SIDE, _PATCH, _WIDTH = 56, 14, 32
_UNIT = {"red": (1, -1, -1), "green": (-1, 1, -1), "blue": (-1, -1, 1)}


def write_encoder(language_model: Path, file: Path) -> None:
    """Write the encoder for a language model of the Gemma 3 family, both in GGUF."""
    import gguf
    import numpy as np

    reader = gguf.GGUFReader(language_model)
    width = int(reader.fields["gemma3.embedding_length"].contents())
    tokens = reader.fields["tokenizer.ggml.tokens"].contents()
    table = next(tensor for tensor in reader.tensors if tensor.name == "token_embd.weight")
    rows = [table.data[[tokens.index(f"▁{name}")]] for name in COLOURS]
    # The language model multiplies text embeddings by this, and uses image embeddings unchanged.
    words = np.concatenate([gguf.quants.dequantize(row, table.tensor_type) for row in rows]) * np.sqrt(width)
    features = np.zeros((3, _WIDTH))
    features[:, :3] = list(_UNIT.values())
    features /= np.sqrt((features**2).mean(1, keepdims=True))  # as the encoder's last step does
    projection = np.zeros((_WIDTH, width))
    projection[:3] = np.linalg.lstsq(features[:, :3], words, rcond=None)[0]
    patches = np.zeros((_WIDTH, 3, _PATCH, _PATCH))
    for channel in range(3):
        patches[channel, channel] = 1 / _PATCH**2
    layer = {f"{name}.{part}": value for name in ("ln1", "ln2") for part, value in _norm(np).items()}
    for name in ("attn_q", "attn_k", "attn_v", "attn_out", "ffn_up", "ffn_down"):
        layer |= {f"{name}.weight": np.zeros((_WIDTH, _WIDTH)), f"{name}.bias": np.zeros(_WIDTH)}
    tensors = {
        "v.patch_embd.weight": patches,
        "v.patch_embd.bias": np.zeros(_WIDTH),
        "v.position_embd.weight": np.zeros(((_SIDE // _PATCH) ** 2, _WIDTH)),
        **{f"v.blk.0.{name}": value for name, value in layer.items()},
        "mm.input_projection.weight": projection,
        "mm.soft_emb_norm.weight": np.ones(_WIDTH),
    }
    _write(gguf.GGUFWriter(file, "clip"), {name: np.float32(value) for name, value in tensors.items()}, width)


def _norm(np: Any) -> dict[str, Any]:
    return {"weight": np.ones(_WIDTH), "bias": np.zeros(_WIDTH)}


def _write(writer: Any, tensors: dict[str, Any], width: int) -> None:
    writer.add_bool("clip.has_vision_encoder", True)
    writer.add_string("clip.projector_type", "gemma3")
    writer.add_bool("clip.use_gelu", True)
    sizes = {
        "image_size": _SIDE,
        "patch_size": _PATCH,
        "embedding_length": _WIDTH,
        "feed_forward_length": _WIDTH,
        "block_count": 1,
        "projection_dim": width,
        "attention.head_count": 1,
    }
    for name, value in sizes.items():
        writer.add_uint32(f"clip.vision.{name}", value)
    writer.add_float32("clip.vision.attention.layer_norm_epsilon", 1e-6)
    writer.add_array("clip.vision.image_mean", [0.5] * 3)
    writer.add_array("clip.vision.image_std", [0.5] * 3)
    for name, value in tensors.items():
        writer.add_tensor(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
