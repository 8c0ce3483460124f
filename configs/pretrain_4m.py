"""The paper's pre-training: 4M images of CC3M, SBU, Visual Genome and COCO, base model, 50 epochs.

mvlm prepare --dataset=pairs4m --source=DOWNLOADS --data_dir=DATA --max_side=512
mvlm prepare --dataset=coco --source=DOWNLOADS/coco --data_dir=DATA --max_side=512
mvlm train --config=pretrain_4m --workdir=runs/pretrain_4m --config.data.data_dir=DATA
mvlm compile --config=pretrain_4m --topology=v6e:4x4

`pretrain_4m:large` is the same for the large model, its parameters in parts over 16 devices. What either needs of a
TPU slice, and for how long, is in docs/scaling.md.

docs/data.md says what DOWNLOADS holds. Cost and scores of this implementation are not measured: the paper reports
scores with encoders that start from published weights.
"""

from ml_collections import ConfigDict

from mvlm_jax import config as config_lib

EPOCHS, WARMUP_EPOCHS = 50, 5
IMAGES = 4_000_000


def get_config(size: str = "base") -> ConfigDict:
    config = config_lib.default()
    if size == "large":
        config.update(config_lib.model_size("large"))
        config.model.remat = "dots"
        config.mesh.fsdp = 16
    elif size != "base":
        raise ValueError(f"size {size!r} is not one of base, large")
    config.data.train = "tfds:pairs4m:train"
    config.data.eval = "tfds:coco:val"
    config.data.workers = 16
    config.batch_size = 512
    steps_per_epoch = IMAGES // config.batch_size
    config.steps = EPOCHS * steps_per_epoch
    config.optimizer.warmup_steps = WARMUP_EPOCHS * steps_per_epoch
    return config
