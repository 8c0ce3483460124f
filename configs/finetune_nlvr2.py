"""NLVR2 from a pre-trained model (paper, section 4.2); `finetune_nlvr2.py:shapes` over drawn scenes, on a laptop.

mvlm prepare --dataset=shapes --data_dir=runs/data
mvlm prepare --dataset=shapes_nlvr2 --data_dir=runs/data
mvlm train --config=configs/demo.py --workdir=runs/demo --config.data.data_dir=runs/data
mvlm train --config=configs/finetune_nlvr2.py:shapes --workdir=runs/nlvr2 --config.data.data_dir=runs/data \
  --config.init_from.checkpoint=runs/demo

mvlm train --config=configs/finetune_nlvr2.py --workdir=runs/nlvr2 --config.init_from.checkpoint=PRETRAINED

`NLVR2/` holds the published JSON files beside images/train/, images/dev/ and images/test1/; another place is named with
--config.data.train=nlvr2:DIR?split=train. What the drawn statements give is in docs/results.md; the published ones
are not measured.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict

from mvlm_jax import config as config_lib

DEMO = Path(__file__).with_name("demo.py")
EPOCHS, STATEMENTS = 10, 86_373


def get_config(variant: str = "") -> ConfigDict:
    if variant == "shapes":
        config = runpy.run_path(str(DEMO))["get_config"]()
        config.task = "nlvr2"
        config.data.train, config.data.eval = "tfds:shapes_nlvr2:train", "tfds:shapes_nlvr2:val"
        config.steps = 700
        config.text.max_length = 34  # a statement has more rare words than a caption
        # The two encoders change more slowly than what is above them, as in finetune_vqa.py.
        config.optimizer.peak, config.optimizer.encoder_peak = 2e-3, 3e-4
        config.optimizer.warmup_steps = 50
        return config
    if variant:
        raise ValueError(f"variant {variant!r} is not shapes")
    config = config_lib.default()
    config.task = "nlvr2"
    config.data.train, config.data.eval = "nlvr2:NLVR2?split=train", "nlvr2:NLVR2?split=dev"
    config.image.size = 384
    config.batch_size = 128
    config.steps = EPOCHS * STATEMENTS // config.batch_size
    config.optimizer.warmup_steps = 0
    config.optimizer.peak = config.optimizer.encoder_peak = 2e-5
    config.optimizer.final = config.optimizer.encoder_final = 1e-6
    config.data.augment.min_scale = 0.5
    return config
