"""The paper's pre-training: 4M images of CC3M, SBU, Visual Genome and COCO, base model, 50 epochs.

mvlm prepare --dataset=pairs4m --source=DOWNLOADS --data_dir=DATA --max_side=512
mvlm prepare --dataset=coco --source=DOWNLOADS/coco --data_dir=DATA --max_side=512
mvlm train --config=pretrain_4m --workdir=runs/pretrain_4m --config.data.data_dir=DATA
mvlm compile --config=pretrain_4m --topology=v6e:4x4

`pretrain_4m:large` is the same for the large model, its parameters in parts over 16 devices. What either needs of a
TPU slice, and for how long, is in docs/results/tpu.md.

`pretrain_4m:ablation` is what the paper's ablations pre-train on: half of CC3M and the whole of COCO, 30 epochs.
`pretrain_4m:cc3m_100`, `:cc3m_50` (the same as `:ablation`), `:cc3m_25` and `:cc3m_10` are its limited data: so many
percent of CC3M, with COCO whole. They need both by themselves:

mvlm prepare --dataset=cc3m --source=DOWNLOADS/cc3m --data_dir=DATA --max_side=512
mvlm train --config=pretrain_4m:ablation --workdir=runs/ablation --config.data.data_dir=DATA

An epoch is of images, each with one of its captions. `,caption` behind any of these names, as in
`pretrain_4m:base,caption`, makes it an epoch of captions, each with its image: docs/training.md has the steps of both.

docs/data.md says what DOWNLOADS holds. Cost and scores of this implementation are not measured: the paper reports
scores with encoders that start from published weights. Recalls on COCO, which `data.eval` names, are not zero-shot:
it is trained on. docs/tasks.md has the protocol.
"""

from typing import NamedTuple

from ml_collections import ConfigDict

from mvlm_jax import config as config_lib


class Size(NamedTuple):
    """Of a collection."""

    image: int
    caption: int


# As ALBEF counts them, without the sentences of Visual Genome's small regions (docs/data.md).
ALL = Size(4_000_000, 2_950_000 + 860_000 + 769_000 + 567_000)
CC3M, COCO = Size(2_950_000, 2_950_000), Size(113_287, 566_747)
PARTS = {"cc3m_100": 1.0, "cc3m_50": 0.5, "ablation": 0.5, "cc3m_25": 0.25, "cc3m_10": 0.1}  # of CC3M, beside COCO
WARMUP_EPOCHS = 5


def get_config(variant: str = "base") -> ConfigDict:
    name, _, epoch_of = variant.partition(",")
    epoch_of = epoch_of or "image"
    if name not in ("base", "large", *PARTS) or epoch_of not in Size._fields:
        names = ", ".join(["base", "large", *PARTS])
        raise ValueError(f"variant {variant!r} is not one of {names}, which may be followed by ,caption")
    config = config_lib.default()
    config.data.epoch_of = epoch_of
    if name == "large":
        config.update(config_lib.model_size("large"))
        config.model.remat = "dots"
        config.mesh.fsdp = 16
    if name in PARTS:
        part = PARTS[name]
        config.data.train = f"tfds:cc3m:train?fraction={part:g} + tfds:coco:train"
        epochs, examples = 30, part * getattr(CC3M, epoch_of) + getattr(COCO, epoch_of)
    else:
        config.data.train = "tfds:pairs4m:train"
        epochs, examples = 50, getattr(ALL, epoch_of)
    config.data.eval = "tfds:coco:val"
    config.data.workers = 16
    config.batch_size = 512
    steps_per_epoch = round(examples) // config.batch_size
    config.steps = epochs * steps_per_epoch
    config.optimizer.warmup_steps = WARMUP_EPOCHS * steps_per_epoch
    return config
