"""One encoder as a folder that transformers loads."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from safetensors.numpy import save_file
from tokenizers import processors

from mvlm_jax.data import wordpiece
from mvlm_jax.data.text import SPECIAL, Tokenizer
from mvlm_jax.interop.entries import IMAGE, STACK, TEXT, Entry
from mvlm_jax.interop.tensors import PREPROCESSOR
from mvlm_jax.interop.vocabulary import library_tokenizer
from mvlm_jax.models.text_encoder import EPSILON, FIRST_POSITION, TOKEN_TYPES

Params = Mapping[str, Float[np.ndarray, "..."]]  # by path within the encoder

CONFIG, WEIGHTS = "config.json", "model.safetensors"
_BICUBIC = 3  # Pillow's number


def write_image_encoder(
    folder: Path,
    params: Params,
    *,
    heads: int,
    image_size: int,
    patch: int,
    epsilon: float,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> None:
    """For `ViTModel(add_pooling_layer=False)`, which has no mask token: it stays behind."""
    folder.mkdir()
    config = {
        "architectures": ["ViTModel"],
        "model_type": "vit",
        "image_size": image_size,
        "patch_size": patch,
        "num_channels": 3,
        "qkv_bias": True,
        "layer_norm_eps": epsilon,
    }
    _write_json(folder / CONFIG, config | _sizes(params, heads=heads))
    _write_tensors(folder, {path: value for path, value in params.items() if path != "mask_token"}, IMAGE, heads=heads)
    preprocessing = {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": image_size, "width": image_size},
        "resample": _BICUBIC,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(mean),
        "image_std": list(std),
    }
    _write_json(folder / PREPROCESSOR, preprocessing)


def write_text_encoder(folder: Path, params: Params, *, heads: int, kind: str, tokenizer: Tokenizer) -> None:
    """For `RobertaModel` or `BertModel`, with `add_pooling_layer=False`."""
    folder.mkdir()
    ids, first = tokenizer.ids, FIRST_POSITION[kind]
    table = params["position_embedding/embedding"]
    positions = table[first:]
    if kind == "roberta" and ids.pad + 1 != first:
        # There, positions are counted from the padding's id + 1.
        before = np.zeros((ids.pad + 1, table.shape[1]), table.dtype)
        table = np.concatenate([before, positions])
    config = {
        "architectures": [{"roberta": "RobertaModel", "bert": "BertModel"}[kind]],
        "model_type": kind,
        "vocab_size": len(params["token_embedding/embedding"]),
        "max_position_embeddings": len(table),
        "type_vocab_size": TOKEN_TYPES[kind],
        "layer_norm_eps": EPSILON[kind],
        "pad_token_id": ids.pad,
        "bos_token_id": ids.start,
        "eos_token_id": ids.end,
    }
    _write_json(folder / CONFIG, config | _sizes(params, heads=heads))
    _write_tensors(folder, {**params, "position_embedding/embedding": table}, TEXT, heads=heads)
    _write_tokenizer(folder, tokenizer, max_length=len(positions))


def _sizes(params: Params, *, heads: int) -> dict[str, Any]:
    layers, hidden = params[f"{STACK}mlp/up/bias"].shape
    return {
        "hidden_size": params[f"{STACK}mlp/down/bias"].shape[-1],
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": hidden,
        "hidden_act": "gelu",
        "dtype": "float32",
    }


def _write_tensors(folder: Path, params: Params, entries: tuple[Entry, ...], *, heads: int) -> None:
    tensors = {}
    for entry in entries:
        if entry.path not in params:
            if not entry.optional:
                raise ValueError(f"{entry.path} is missing")
            continue
        value = params[entry.path]
        for n, single in enumerate(value) if entry.path.startswith(STACK) else ((None, value),):
            tensors[entry.name.format(n=n)] = np.ascontiguousarray(entry.layout.to_torch(single, heads), np.float32)
    # transformers refuses files that do not say which library wrote them.
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    # The library lets nobody but the owner read what it writes.
    shutil.copymode(folder / CONFIG, folder / WEIGHTS)


def _write_tokenizer(folder: Path, tokenizer: Tokenizer, *, max_length: int) -> None:
    start, pad, end, unknown, mask = SPECIAL[tokenizer.kind]
    library = library_tokenizer(tokenizer)
    # Ours puts start and end around the tokens itself; theirs does what the file says.
    library.post_processor = processors.TemplateProcessing(
        single=f"{start} $A {end}",
        pair=f"{start} $A {end} $B {end}",
        special_tokens=[(start, tokenizer.ids.start), (end, tokenizer.ids.end)],
    )
    (folder / "tokenizer.json").write_text(library.to_str(pretty=True), encoding="utf-8")
    names = {"cls": start, "bos": start, "pad": pad, "sep": end, "eos": end, "unk": unknown, "mask": mask}
    config = {f"{role}_token": token for role, token in names.items()} | wordpiece.config_fields(library)
    _write_json(
        folder / wordpiece.CONFIG,
        {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": max_length, **config},
    )


def _write_json(file: Path, values: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n")
