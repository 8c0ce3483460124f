"""A model that learns drawn scenes of coloured shapes in a few minutes on a laptop, from nothing.

mvlm prepare --dataset=shapes --data_dir=runs/data
mvlm train --config=demo --workdir=runs/demo --config.data.data_dir=runs/data

`make demo` does both, and draws what the model rebuilds. Cost: 6 minutes on 2 CPU cores, install included. What it
gives on 256 held-out scenes is in docs/results.md.
"""

from ml_collections import ConfigDict

from mvlm_jax import config as config_lib


def get_config() -> ConfigDict:
    config = config_lib.default()
    config.steps = 600
    config.batch_size = 64

    config.image.size = 48
    config.image_encoder.patch = 8
    config.text_encoder.vocab_size = 400  # enough for each word of the captions to be one token
    config.text.max_length = 38  # the longest caption
    config.text_encoder.positions = 64
    config.update(config_lib.model_size("tiny"))
    # One of the four places of a scene is hidden whole, so that what stood there is told by the caption alone.
    config.mask.image_cell = 3
    config.mask.image_ratio = 0.25
    # Under L1 the best guess for a shape that is not certain is the ground behind it.
    config.loss.pixels = "l2"
    config.loss.mim = 3.0  # its squared errors are small beside the other losses

    # Nothing is pre-trained here, so the encoders learn as fast as the rest.
    config.optimizer.peak = config.optimizer.image_encoder_peak = config.optimizer.text_encoder_peak = 2e-3
    config.optimizer.final = config.optimizer.image_encoder_final = config.optimizer.text_encoder_final = 1e-5
    config.optimizer.warmup_steps = 100

    # A crop or a rotation would move the shapes away from where the caption says that they are.
    config.data.augment.min_scale = 1.0
    config.data.augment.flip = False
    config.data.augment.operations = 0

    config.eval.rerank = 16
    return config
