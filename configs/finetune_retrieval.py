"""Retrieval from a pre-trained model (paper, section 4.2): COCO, or `:flickr30k`; `:flickr8k` after
configs/flickr8k.py and `:shapes` after configs/demo.py, on a laptop.

mvlm train --config=configs/finetune_retrieval.py --workdir=runs/coco --config.init_from.checkpoint=PRETRAINED
mvlm evaluate --config=configs/finetune_retrieval.py --workdir=runs/coco \
  --config.data.eval=tfds:coco:test --k=64,128,256

mvlm train --config=configs/finetune_retrieval.py:flickr8k --workdir=runs/flickr8k_retrieval \
  --config.data.data_dir=runs/data --config.init_from.checkpoint=runs/flickr8k
mvlm train --config=configs/finetune_retrieval.py:shapes --workdir=runs/shapes_retrieval \
  --config.data.data_dir=runs/data --config.init_from.checkpoint=runs/demo

`--k` gives recalls for several numbers of re-ranked candidates. What the small ones give is in docs/results.md.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict

from mvlm_jax import config as config_lib

# (epochs, training captions, candidates that are re-ranked); an epoch sees every caption, about five of each image
PUBLISHED = {"coco": (5, 566_747, 256), "flickr30k": (10, 145_000, 128)}
# (recipe of the pre-training, its argument, steps, learning rate)
SMALL = {"flickr8k": ("flickr8k.py", "laptop", 300, 2e-4), "shapes": ("demo.py", None, 200, 3e-4)}


def get_config(variant: str = "coco") -> ConfigDict:
    if variant in SMALL:
        recipe, argument, steps, rate = SMALL[variant]
        arguments = () if argument is None else (argument,)
        config = runpy.run_path(str(Path(__file__).with_name(recipe)))["get_config"](*arguments)
        config.steps = steps
        config.optimizer.warmup_steps = steps // 20
        config.optimizer.peak = config.optimizer.encoder_peak = rate
    elif variant in PUBLISHED:
        epochs, captions, candidates = PUBLISHED[variant]
        config = config_lib.default()
        config.data.train, config.data.eval = f"tfds:{variant}:train", f"tfds:{variant}:val"
        config.image.size = 384
        config.batch_size = 256
        config.steps = epochs * captions // config.batch_size
        config.optimizer.warmup_steps = 0
        config.optimizer.peak = config.optimizer.encoder_peak = 1e-5
        config.optimizer.final = config.optimizer.encoder_final = 1e-6
        config.data.augment.min_scale = 0.5
        config.eval.rerank = candidates
    else:
        raise ValueError(f"variant {variant!r} is not one of {', '.join([*PUBLISHED, *SMALL])}")
    config.task = "retrieval"
    config.loss.mim = config.loss.mlm = 0.0
    return config
