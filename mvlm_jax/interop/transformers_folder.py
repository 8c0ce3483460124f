"""One encoder as a folder that transformers loads."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from safetensors.numpy import save_file
from tokenizers import processors

from mvlm_jax.data import wordpiece
from mvlm_jax.data.text import SPECIAL, Tokenizer
from mvlm_jax.files import write_json
from mvlm_jax.interop.family import ACTIVATION_NAMES, STACK, Family, Params
from mvlm_jax.interop.vocabulary import library_tokenizer

CONFIG, WEIGHTS = "config.json", "model.safetensors"


def write_model(
    folder: Path, params: Params, *, family: Family, encoder: ConfigDict, fields: Mapping[str, Any]
) -> None:
    """A new folder with weights and config.json.

    Args:
      encoder: the part's config.
      fields: of config.json, beside the sizes, the activation and the class that loads it.
    """
    entries = family.namings[0].entries
    if unnamed := sorted(params.keys() - {entry.path for entry in entries}):
        raise ValueError(f"the entries of {family.kind} do not cover the parameters {', '.join(unnamed)}")
    folder.mkdir()
    names, (layers, hidden) = family.config_names, params[f"{STACK}mlp/up/bias"].shape
    sizes = {
        names.width: params[f"{STACK}mlp/down/bias"].shape[-1],
        names.layers: layers,
        names.heads: encoder.heads,
        names.hidden: hidden,
        names.activation: ACTIVATION_NAMES[family.activation_of(encoder)][0],
    }
    sizes.pop("", None)  # a size that a config.json of this family does not say
    start = {
        "architectures": [family.architecture_of(encoder)],
        "model_type": family.model_type_of(encoder),
        "dtype": "float32",
    }
    write_json(folder / CONFIG, {**start, **sizes, **fields})
    tensors = {}
    for entry in entries:
        if entry.path in family.not_exported or (entry.optional and entry.path not in params):
            continue
        value = params[entry.path]
        for n, single in enumerate(value) if entry.path.startswith(STACK) else ((None, value),):
            name = family.export_prefix + entry.name.format(n=n)
            tensors[name] = np.ascontiguousarray(entry.layout.to_torch(single, encoder.heads), np.float32)
    # transformers refuses files that do not say which library wrote them.
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    # The library lets nobody but the owner read what it writes.
    shutil.copymode(folder / CONFIG, folder / WEIGHTS)


def write_tokenizer(folder: Path, tokenizer: Tokenizer, *, max_length: int) -> None:
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
    write_json(
        folder / wordpiece.CONFIG,
        {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": max_length, **config},
    )
