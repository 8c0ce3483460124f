"""Flickr8k: `flickr8k` from scratch in under an hour on a laptop, `flickr8k:small` from scratch on one GPU,
`flickr8k:minilm` with the text encoder of a published 6-layer BERT, on a laptop; from DINOv2-small and MiniLM
`flickr8k:published` in about an hour on a laptop and `flickr8k:published_gpu` on one GPU.

mvlm prepare --dataset=flickr8k --source=FLICKR8K --data_dir=runs/data
mvlm train --config=flickr8k --workdir=runs/flickr8k --config.data.data_dir=runs/data
mvlm train --config=flickr8k:minilm --config.init_from.text=MINILM --workdir=runs/minilm \
  --config.data.data_dir=runs/data
mvlm train --config=flickr8k:published --config.init_from.image=DINOV2 --config.init_from.text=MINILM \
  --workdir=runs/published --config.data.data_dir=runs/data

DINOV2 is a folder with the weights of DINOv2-small (Oquab et al., 2023), or hf:facebook/dinov2-small. MINILM is one
with those and the tokenizer of all-MiniLM-L6-v2 (Wang et al., 2020), or hf:sentence-transformers/all-MiniLM-L6-v2.
docs/results.md has what some of these runs reach.
"""

from ml_collections import ConfigDict

from mvlm_jax import config as config_lib

TRAINING_IMAGES = 6000


def get_config(size: str = "laptop") -> ConfigDict:
    config = config_lib.default()
    config.data.train = "tfds:flickr8k:train"
    config.data.eval = "tfds:flickr8k:dev"

    # 30,000 captions are too few for a published vocabulary; lower case makes the most of them.
    config.text_encoder.kind = "bert"
    config.text_encoder.vocab_size = 4000
    config.text.max_length = 24  # cuts 2% of the captions
    config.text_encoder.positions = 64

    # No published weights: the encoders learn as fast as the rest.
    config.optimizer.final = config.optimizer.image_encoder_final = config.optimizer.text_encoder_final = 1e-5
    config.optimizer.clip_norm = 1.0
    config.data.augment.min_scale = 0.5

    if size == "laptop":
        config.batch_size = 128
        config.steps = 1200  # 26 epochs
        config.image.size = 96
        config.update(config_lib.model_size("tiny"))
        for part in (config.image_encoder, config.text_encoder, config.cross):
            part.width, part.heads = 128, 4
        config.image_encoder.layers = config.text_encoder.layers = 3
        config.optimizer.peak = config.optimizer.image_encoder_peak = config.optimizer.text_encoder_peak = 1e-3
        config.optimizer.warmup_steps = 100
        # A few epochs are soon over: more variety would be less learned.
        config.data.augment.operations = 0
        config.eval.rerank = 16
    elif size == "small":
        config.batch_size = 512
        config.steps = 200 * TRAINING_IMAGES // config.batch_size
        config.image.size = 128
        config.update(config_lib.model_size("small"))
        config.optimizer.peak = config.optimizer.image_encoder_peak = config.optimizer.text_encoder_peak = 5e-4
        config.optimizer.warmup_steps = 300
        config.data.workers = 12
        config.eval.batch_size = 256
    elif size == "minilm":
        config.batch_size = 64
        config.steps = 1000
        config.image.size = 96
        config.update(config_lib.model_size("tiny"))
        # The published text encoder decides; the image encoder has the same width and depth.
        for part in (config.image_encoder, config.text_encoder, config.cross):
            part.width, part.heads = 384, 12
        config.image_encoder.layers = config.text_encoder.layers = 6
        config.text_encoder.vocab_size = 30522
        config.text_encoder.positions = 512
        config.optimizer.peak = 5e-4
        config.optimizer.image_encoder_peak = config.optimizer.text_encoder_peak = 1e-4
        config.optimizer.warmup_steps = 100
        config.data.augment.operations = 0
        config.eval.rerank = 16
    elif size in ("published", "published_gpu"):
        _published(config, gpu=size == "published_gpu")
    else:
        raise ValueError(f"size {size!r} is not one of laptop, small, minilm, published, published_gpu")

    config.checkpoint.every = 250
    return config


def _published(config: ConfigDict, *, gpu: bool) -> None:
    """What the folders of DINOv2-small and MiniLM say, and how they are trained on 6,000 images."""
    config.update(config_lib.model_size("small"))
    config.image_encoder.kind = "dinov2"
    config.image_encoder.patch = 14
    config.image.mean, config.image.std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    config.text_encoder.layers, config.text_encoder.heads = 6, 12
    config.text_encoder.vocab_size = 30522
    config.text_encoder.positions = 512
    config.text_encoder.pooling = "mean"  # as MiniLM was trained

    # What is new learns faster than what has learned already.
    config.optimizer.peak = 1e-3
    config.optimizer.image_encoder_peak = 1e-4
    config.optimizer.text_encoder_peak = 2e-4
    config.optimizer.image_encoder_final = config.optimizer.text_encoder_final = 1e-6
    if gpu:
        config.batch_size = 256
        config.steps = 30 * TRAINING_IMAGES // config.batch_size
        config.image.size = 224
        config.optimizer.warmup_steps = 100
        config.optimizer.layer_decay = 0.8
        config.data.workers = 12
        config.eval.batch_size = 256
    else:
        config.batch_size = 128
        config.steps = 360  # 7.7 epochs
        config.image.size = 112
        config.optimizer.warmup_steps = 40
        # Reconstruction would double the work, and a whole backward pass through the image encoder add half of it.
        config.loss.mim = config.loss.mlm = 0.0
        config.image_encoder.trained_layers = 4
        config.cross.width, config.cross.heads, config.cross.layers = 192, 3, 2
        config.data.augment.operations = 0
        config.eval.rerank = 16
        config.log_every = 10
