"""Retrieval from a pre-trained model, by ALBEF's recipe (docs/tasks.md says what differs): COCO, or `:flickr30k`;
`:flickr8k` after the recipe flickr8k and `:shapes` after demo, on a laptop.

mvlm train --config=finetune_retrieval --workdir=runs/coco --config.init_from.checkpoint=PRETRAINED
mvlm evaluate --workdir=runs/coco --config.data.eval=tfds:coco:test --k=64,128,256

mvlm train --config=finetune_retrieval:flickr8k --workdir=runs/flickr8k_retrieval \
  --config.data.data_dir=runs/data --config.init_from.checkpoint=runs/flickr8k
mvlm train --config=finetune_retrieval:shapes --workdir=runs/shapes_retrieval \
  --config.data.data_dir=runs/data --config.init_from.checkpoint=runs/demo

`--k` gives recalls for several numbers of re-ranked candidates. What the small ones give is in docs/results.md.
"""

from ml_collections import ConfigDict

from mvlm_jax.configs import _finetune, demo, flickr8k

# (epochs, training captions, candidates that are re-ranked); an epoch is of captions, about five of each image
PUBLISHED = {"coco": (5, 566_747, 256), "flickr30k": (10, 145_000, 128)}
# (config of the pre-training, steps, learning rate)
SMALL = {"flickr8k": (flickr8k.get_config, 300, 2e-4), "shapes": (demo.get_config, 200, 3e-4)}


def get_config(variant: str = "coco") -> ConfigDict:
    if variant in SMALL:
        pretraining, steps, rate = SMALL[variant]
        config = pretraining()
        config.task = "retrieval"
        config.steps = steps
        config.optimizer.warmup_steps = steps // 20
        config.optimizer.peak = config.optimizer.image_encoder_peak = config.optimizer.text_encoder_peak = rate
    elif variant in PUBLISHED:
        epochs, captions, candidates = PUBLISHED[variant]
        config = _finetune.published("retrieval", epochs=epochs, examples=captions, batch_size=256, rate=1e-5)
        config.data.train, config.data.eval = f"tfds:{variant}:train", f"tfds:{variant}:val"
        config.data.epoch_of = "caption"
        config.eval.rerank = candidates
    else:
        raise ValueError(f"variant {variant!r} is not one of {', '.join([*PUBLISHED, *SMALL])}")
    config.loss.mim = config.loss.mlm = 0.0
    return config
