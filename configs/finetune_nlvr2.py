"""NLVR2 from a pre-trained model, by ALBEF's recipe; `finetune_nlvr2:shapes` over drawn scenes, on a laptop.

mvlm prepare --dataset=shapes --data_dir=runs/data
mvlm prepare --dataset=shapes_nlvr2 --data_dir=runs/data
mvlm train --config=demo --workdir=runs/demo --config.data.data_dir=runs/data
mvlm train --config=finetune_nlvr2:shapes --workdir=runs/nlvr2 --config.data.data_dir=runs/data \
  --config.init_from.checkpoint=runs/demo

mvlm train --config=finetune_nlvr2 --workdir=runs/nlvr2 --config.init_from.checkpoint=PRETRAINED

`NLVR2/` holds the published JSON files beside images/train/, images/dev/ and images/test1/; another place is named with
--config.data.train='nlvr2:DIR?split=train'. What the drawn statements give is in docs/results.md; the published ones
are not measured. docs/tasks.md says what differs from ALBEF: its extra epoch of pre-training on pairs of images,
among others.
"""

from ml_collections import ConfigDict

from mvlm_jax.configs import _finetune

EPOCHS, STATEMENTS = 10, 86_373


def get_config(variant: str = "") -> ConfigDict:
    if variant == "shapes":
        config = _finetune.over_shapes("nlvr2", dataset="shapes_nlvr2", steps=700)
        config.text.max_length = 36  # a statement has more rare words than a caption; the longest takes 35
        return config
    if variant:
        raise ValueError(f"variant {variant!r} is not shapes")
    config = _finetune.published("nlvr2", epochs=EPOCHS, examples=STATEMENTS, batch_size=128, rate=2e-5)
    config.data.train, config.data.eval = "nlvr2:NLVR2?split=train", "nlvr2:NLVR2?split=dev"
    return config
