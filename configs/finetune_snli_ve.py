"""SNLI-VE from a pre-trained model (paper, section 4.2); `finetune_snli_ve.py:shapes` over drawn scenes, on a laptop.

mvlm prepare --dataset=shapes --data_dir=runs/data
mvlm prepare --dataset=shapes_ve --data_dir=runs/data
mvlm train --config=configs/demo.py --workdir=runs/demo --config.data.data_dir=runs/data
mvlm train --config=configs/finetune_snli_ve.py:shapes --workdir=runs/ve --config.data.data_dir=runs/data \
  --config.init_from.checkpoint=runs/demo

mvlm train --config=configs/finetune_snli_ve.py --workdir=runs/ve --config.init_from.checkpoint=PRETRAINED

`SNLI-VE/` holds the published JSON lines beside flickr30k-images/; another place is named with
--config.data.train=snli_ve:DIR?split=train. What the drawn hypotheses give is in docs/results.md; the published ones
are not measured.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict

from mvlm_jax import config as config_lib

DEMO = Path(__file__).with_name("demo.py")
EPOCHS, HYPOTHESES = 5, 529_527


def get_config(variant: str = "") -> ConfigDict:
    if variant == "shapes":
        config = runpy.run_path(str(DEMO))["get_config"]()
        config.task = "entailment"
        config.data.train, config.data.eval = "tfds:shapes_ve:train", "tfds:shapes_ve:val"
        config.steps = 500
        # The two encoders change more slowly than what is above them, as in finetune_vqa.py.
        config.optimizer.peak, config.optimizer.encoder_peak = 2e-3, 3e-4
        config.optimizer.warmup_steps = 50
        return config
    if variant:
        raise ValueError(f"variant {variant!r} is not shapes")
    config = config_lib.default()
    config.task = "entailment"
    config.data.train, config.data.eval = "snli_ve:SNLI-VE?split=train", "snli_ve:SNLI-VE?split=dev"
    config.image.size = 384
    config.batch_size = 256
    config.steps = EPOCHS * HYPOTHESES // config.batch_size
    config.optimizer.warmup_steps = 0
    config.optimizer.peak = config.optimizer.encoder_peak = 2e-5
    config.optimizer.final = config.optimizer.encoder_final = 1e-6
    config.data.augment.min_scale = 0.5
    return config
