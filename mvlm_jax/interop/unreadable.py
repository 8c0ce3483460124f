"""Published text encoders that are built otherwise than those that can be read, and what they would need."""

import re
from collections.abc import Iterable
from typing import NamedTuple

from mvlm_jax.errors import UserError
from mvlm_jax.interop.tensors import Tensors


class Unreadable(NamedTuple):
    title: str  # with its article
    model_types: tuple[str, ...]  # that a folder's config.json may have
    tensor: str  # regex over the name of a tensor, behind any prefix, that only such an encoder has
    missing: str


UNREADABLE = (
    Unreadable(
        "a DeBERTa",
        ("deberta", "deberta-v2"),
        r"encoder\.(rel_embeddings|layer\.\d+\.attention\.self\.(in|pos|query)_proj)\.weight",
        "attention that is disentangled into content and relative positions",
    ),
    Unreadable(
        "a ModernBERT",
        ("modernbert", "modernbert-decoder"),
        r"embeddings\.tok_embeddings\.weight",
        "rotary positions, attention within a window and gated MLPs without biases",
    ),
    Unreadable(
        "an ALBERT",
        ("albert",),
        r"encoder\.embedding_hidden_mapping_in\.weight",
        "layers that share one set of parameters, and embeddings narrower than the layers",
    ),
    Unreadable(
        "an ELECTRA", ("electra",), r"embeddings_project\.weight", "embeddings narrower than the layers, and its naming"
    ),
    Unreadable(
        "a T5",
        ("t5", "mt5", "umt5", "longt5"),
        r"encoder\.block\.\d+\.layer\.0\.SelfAttention\.q\.weight",
        "pre-norm layers with RMS norms, without biases and without a table of positions",
    ),
    Unreadable(
        "a CLIP text tower",
        ("clip", "clip_text_model", "siglip", "siglip_text_model"),
        r"text_model\.embeddings\.token_embedding\.weight|(?<!visual\.)transformer\.resblocks\.\d+\.ln_1\.weight",
        "pre-norm layers whose tokens see only those before them",
    ),
    Unreadable(
        "a decoder",
        ("gpt2", "gpt_neo", "gpt_neox", "gptj", "opt", "bloom", "llama", "mistral", "qwen2", "qwen3", "gemma"),
        r"h\.\d+\.attn\.c_attn\.weight|layers\.\d+\.mlp\.gate_proj\.weight",
        "pre-norm layers whose tokens see only those before them",
    ),
)


def check_text_encoder(source: Tensors, *, kinds: Iterable[str]) -> None:
    """
    Args:
      kinds: of text encoders that can be read.

    Raises:
      UserError: the source is one that cannot, by its config.json or, where it has none, by its tensors.
    """
    stated = source.config.get("model_type")
    for each in UNREADABLE:
        if stated is not None:
            sign = f"{stated!r} in its config.json" if stated in each.model_types else None
        else:
            rule = re.compile(rf"(?:.*\.)?(?:{each.tensor})")
            sign = next((name for name in sorted(source.tensors) if rule.fullmatch(name)), None)
        if sign is not None:
            raise UserError(
                f"{source.path} is {each.title} ({sign}), which needs {each.missing}; "
                f"text encoders of kind {', '.join(kinds)} are read"
            )
