"""What published encoders call their tensors."""

import re
from collections.abc import Iterable
from typing import NamedTuple

from mvlm_jax.interop.entries import IMAGE, TEXT, Entry

# In front of every name of a file that was saved from a larger model or from a wrapper.
PREFIXES = ("module", "model", "_orig_mod", "backbone", "vit", "deit", "roberta", "bert")

_HEADS = (r"(classifier|qa_outputs)\..*", "a classifier of another task")
_POOLER = (r"pooler\..*", "the pooler, which only a classifier reads")


class Place(NamedTuple):
    """Where a tensor of the table is found in a source."""

    name: str
    part: int | None = None  # of three stacked on the first axis


class Naming(NamedTuple):
    title: str
    entries: tuple[Entry, ...]
    replacements: tuple[tuple[str, str], ...]  # from the table's names, in order
    ignored: tuple[tuple[str, str], ...]  # (regex over whole names, why the tensor is not used)
    fused: tuple[str, ...] = ()  # what follows "attn." in three names that are one tensor, "attn.qkv"
    optional: bool = True  # whether the optional tensors of the table can be there
    aliases: tuple[tuple[str, str], ...] = ()  # (regex, replacement) for old spellings

    def places(self, *, layers: int) -> dict[str, Place]:
        """Where each tensor of the table is, "{n}" of its name filled in."""
        names = [entry.name for entry in self.entries if self.optional or not entry.optional]
        filled = [name.format(n=n) for name in names for n in (range(layers) if "{n}" in name else (0,))]
        return {name: self._place(name) for name in filled}

    def _place(self, name: str) -> Place:
        for old, new in self.replacements:
            name = name.replace(old, new)
        for part, fragment in enumerate(self.fused):
            if f"attn.{fragment}." in name:
                return Place(name.replace(f"attn.{fragment}.", "attn.qkv."), part)
        return Place(name)


VIT = Naming(
    title="ViT of transformers",
    entries=IMAGE,
    replacements=(),
    ignored=(_POOLER, _HEADS, (r"decoder\..*", "a decoder of pixels; the model has its own")),
)
# transformers 5 names the layers so in memory, though it still writes the names above.
VIT_5 = VIT._replace(
    title="ViT of transformers 5",
    replacements=(
        ("encoder.layer.", "layers."),
        ("attention.attention.query", "attention.q_proj"),
        ("attention.attention.key", "attention.k_proj"),
        ("attention.attention.value", "attention.v_proj"),
        ("attention.output.dense", "attention.o_proj"),
        ("intermediate.dense", "mlp.fc1"),
        ("output.dense", "mlp.fc2"),
    ),
)
TIMM = Naming(
    title="ViT of timm (also DeiT, MAE)",
    entries=IMAGE,
    replacements=(
        ("embeddings.cls_token", "cls_token"),
        ("embeddings.position_embeddings", "pos_embed"),
        ("embeddings.patch_embeddings.projection", "patch_embed.proj"),
        ("encoder.layer.", "blocks."),
        ("layernorm_before", "norm1"),
        ("layernorm_after", "norm2"),
        ("layernorm.", "norm."),
        ("attention.attention.", "attn."),
        ("attention.output.dense", "attn.proj"),
        ("intermediate.dense", "mlp.fc1"),
        ("output.dense", "mlp.fc2"),
    ),
    ignored=(
        (r"head\..*", "a classifier"),
        (r"pre_logits\..*", "a layer that only a classifier reads"),
        (r"decoder_(pos_embed|embed\..*|blocks\..*|norm\..*|pred\..*)", "MAE's decoder"),
        (r"mask_token", "the mask token of MAE's decoder, which no encoder sees"),
    ),
    fused=("query", "key", "value"),
    optional=False,
)
TRANSFORMERS_TEXT = Naming(
    title="BERT or RoBERTa of transformers",
    entries=TEXT,
    replacements=(),
    ignored=(
        _POOLER,
        _HEADS,
        (r"cls\..*", "the heads of BERT's pre-training"),
        (r"lm_head\..*", "the head of RoBERTa's pre-training"),
        (r"embeddings\.(position_ids|token_type_ids)", "a constant, not a weight"),
    ),
    # Checkpoints that were converted from TensorFlow; transformers renames them while loading.
    aliases=((r"LayerNorm\.gamma$", "LayerNorm.weight"), (r"LayerNorm\.beta$", "LayerNorm.bias")),
)

IMAGE_NAMINGS = (VIT, VIT_5, TIMM)
TEXT_NAMINGS = (TRANSFORMERS_TEXT,)


def stripped(name: str) -> str:
    """`name` without the known prefixes, of which there may be several."""
    return re.sub(rf"^(?:(?:{'|'.join(PREFIXES)})\.)+", "", name)


def depth(names: Iterable[str]) -> int:
    """How many layers the names tell of."""
    numbers = [
        int(found[1]) for name in names if (found := re.match(r"(?:encoder\.layer|layers|blocks)\.(\d+)\.", name))
    ]
    return 1 + max(numbers, default=-1)


def likeness(naming: Naming, names: set[str]) -> float:
    """The part of the naming's legal names that are there, 0 to 1."""
    legal = {place.name for place in naming.places(layers=min(max(depth(names), 1), 1000)).values()}
    return len(legal & names) / len(legal)
