"""What the recipes of fine-tuning share."""

from ml_collections import ConfigDict

from mvlm_jax import config as config_lib
from mvlm_jax.configs import demo


def over_shapes(task: str, *, dataset: str, steps: int) -> ConfigDict:
    """A task over drawn scenes, after the recipe demo."""
    config = demo.get_config()
    config.task = task
    config.data.train, config.data.eval = f"tfds:{dataset}:train", f"tfds:{dataset}:val"
    config.steps = steps
    # The two encoders change more slowly than what is above them: at one rate for all, less is learned.
    config.optimizer.peak = 2e-3
    config.optimizer.image_encoder_peak = config.optimizer.text_encoder_peak = 3e-4
    config.optimizer.warmup_steps = 50
    return config


def published(task: str, *, epochs: int, examples: int, batch_size: int, rate: float) -> ConfigDict:
    """ALBEF's values, but for its weight decay of 0.02 and its warm-up; `examples` in an epoch."""
    config = config_lib.default()
    config.task = task
    config.image.size = 384
    config.batch_size = batch_size
    config.steps = epochs * examples // batch_size
    config.optimizer.warmup_steps = 0
    config.optimizer.peak = config.optimizer.image_encoder_peak = config.optimizer.text_encoder_peak = rate
    config.optimizer.final = config.optimizer.image_encoder_final = config.optimizer.text_encoder_final = 1e-6
    config.data.augment.min_scale = 0.5
    return config
