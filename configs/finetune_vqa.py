"""VQA v2 from a pre-trained model (paper, section 4.2); `finetune_vqa.py:shapes` over drawn scenes, on a laptop.

mvlm prepare --dataset=shapes --data_dir=runs/data
mvlm prepare --dataset=shapes_vqa --data_dir=runs/data
mvlm train --config=configs/demo.py --workdir=runs/demo --config.data.data_dir=runs/data
mvlm train --config=configs/finetune_vqa.py:shapes --workdir=runs/vqa --config.data.data_dir=runs/data \
  --config.init_from.checkpoint=runs/demo

mvlm train --config=configs/finetune_vqa.py --workdir=runs/vqa --config.init_from.checkpoint=PRETRAINED \
  --config.data.train=vqa:VQA?split=trainval --config.data.eval=vqa:VQA?split=minival
mvlm evaluate --config=configs/finetune_vqa.py --workdir=runs/vqa --config.data.eval=vqa:VQA?split=test \
  --submission=evalai.json

VQA is a directory with the published JSON files beside COCO's train2014/, val2014/ and test2015/. What the drawn ones
give is in docs/results.md; the published ones are not measured.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict

from mvlm_jax import config as config_lib

DEMO = Path(__file__).with_name("demo.py")

EPOCHS, QUESTIONS = 8, 443_757 + 214_354 * 15 // 16  # of train and of val, about a sixteenth of it held back in minival


def get_config(variant: str = "") -> ConfigDict:
    if variant == "shapes":
        config = runpy.run_path(str(DEMO))["get_config"]()
        config.task = "vqa"
        config.data.train, config.data.eval = "tfds:shapes_vqa:train", "tfds:shapes_vqa:val"
        config.steps = 1000
        config.text.max_length = 20  # "how many shapes are there?" takes 19
        # The two encoders change more slowly than what is above them: at one rate for all, less is learned.
        config.optimizer.peak, config.optimizer.encoder_peak = 2e-3, 3e-4
        config.optimizer.warmup_steps = 50
        # One word, on which all agree.
        config.vqa.answers_per_question = 1
        config.vqa.answer_length = 8
        config.vqa.decoder_layers = 2
        return config
    if variant:
        raise ValueError(f"variant {variant!r} is not shapes")
    config = config_lib.default()
    config.task = "vqa"
    config.data.train, config.data.eval = "vqa:VQA?split=trainval", "vqa:VQA?split=minival"
    config.image.size = 384
    config.batch_size = 256
    config.steps = EPOCHS * QUESTIONS // config.batch_size
    config.optimizer.warmup_steps = 0
    config.optimizer.peak = config.optimizer.encoder_peak = 2e-5
    config.optimizer.final = config.optimizer.encoder_final = 1e-6
    config.data.augment.min_scale = 0.5
    return config
