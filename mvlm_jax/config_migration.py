"""What a config of an earlier version means in this one.

A change of the fields of `config.default()` raises `VERSION` by one and adds a step to `STEPS`.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

from mvlm_jax.errors import UserError

VERSION = 4
Fields = dict[str, Any]  # values by dotted names

ENCODERS = ("image_encoder", "text_encoder")
PARTS = (*ENCODERS, "cross")
MOVED_IN_2 = {
    "blind": ("hide_modality",),
    "image.patch": ("image_encoder.patch",),
    "image.epsilon": ("image_encoder.epsilon",),
    "text.kind": ("text_encoder.kind",),
    "text.vocab_size": ("text_encoder.vocab_size",),
    "text.positions": ("text_encoder.positions",),
    "model.layers": ("image_encoder.layers", "text_encoder.layers"),
    "model.cross_layers": ("cross.layers",),
    "model.decoder_layers": ("cross.decoder_layers",),
    **{f"model.{name}": tuple(f"{part}.{name}" for part in PARTS) for name in ("width", "heads", "mlp_ratio")},
}
# What the program did before there was a choice.
ADDED_IN_2 = {"image_encoder.kind": "vit", "model.attention": "xla", "model.layer_loop": "scan"}
MOVED_IN_3 = {
    f"optimizer.encoder_{name}": tuple(f"optimizer.{encoder}_{name}" for encoder in ENCODERS)
    for name in ("peak", "final")
}
MOVED = MOVED_IN_2 | MOVED_IN_3
ADDED_IN_3: Fields = {
    "image_encoder.activation": "gelu",
    "image_encoder.registers": 0,
    **{
        f"{encoder}.{name}": value
        for encoder in ENCODERS
        for name, value in (("pooling", "first"), ("trained_layers", -1))
    },
    **{f"{part}.{name}": 0.0 for part in PARTS for name in ("dropout", "stochastic_depth")},
    "optimizer.layer_decay": 1.0,
    "optimizer.frozen": [],
    "optimizer.ema": 0.0,
    "eval.rerank_by": "itm",
    "eval.ema": False,
}
ADDED_IN_4: Fields = {
    "compilation_cache": "auto",
    "loss.pixels": "l1",
    "data.epoch_of": "image",
    "log.wandb": "",
    "log.tracker": "",
    "log.examples": 4,
}


def migrate(fields: Fields) -> Fields:
    """The fields as this version names them; what is unknown stays, and what is missing is still missing.

    Raises:
      UserError: the version is a later one, or none.
    """
    version = fields.get("config_version", 1)
    if type(version) is not int or version < 1:
        raise UserError(f"config_version={version!r} is not a whole number from 1 to {VERSION}")
    if version > VERSION:
        raise UserError(
            f"config_version={version} is newer than {VERSION}, the latest that this program reads; update mvlm-jax"
        )
    for step in STEPS[version - 1 :]:
        fields = step(fields)
    return fields | {"config_version": VERSION}


def _to_2(old: Fields) -> Fields:
    fields = _moved(old, MOVED_IN_2)
    for name in {"data.train", "data.eval"} & fields.keys():
        fields[name] = modern_uri(fields[name])
    return ADDED_IN_2 | fields


def _to_3(old: Fields) -> Fields:
    return ADDED_IN_3 | _moved(old, MOVED_IN_3)


def _to_4(old: Fields) -> Fields:
    return ADDED_IN_4 | old


def _moved(old: Fields, places: Mapping[str, tuple[str, ...]]) -> Fields:
    return {new: value for name, value in old.items() for new in places.get(name, (name,))}


def modern_uri(mixture: str) -> str:
    """`mixture` with each `vqa:<directory>:<split>` (`nlvr2:`, `snli_ve:`) as `vqa:<directory>?split=<split>`."""
    old = r"^(\s*(?:[^*:]*\*)?(?:vqa|nlvr2|snli_ve):.+?):([^:/\[\]?\s]+)(?=\s*$)"
    return "".join(re.sub(old, r"\1?split=\2", term) for term in re.split(r"(\s\+(?=\s|$))", mixture))


STEPS: tuple[Callable[[Fields], Fields], ...] = (_to_2, _to_3, _to_4)  # the first leads from version 1 to 2
