"""The paper's pre-training: 4M images of CC3M, SBU, Visual Genome and COCO, base model, 50 epochs.

mvlm train --config=configs/pretrain_4m.py --workdir=runs/pretrain_4m --config.data.data_dir=DATA
"""

from ml_collections import ConfigDict

from mvlm_jax import config as config_lib

EPOCHS, WARMUP_EPOCHS = 50, 5
# 2.81M of CC3M that could be fetched, 0.86M of SBU, 0.10M of Visual Genome, 0.11M of COCO (paper, section 4.1).
IMAGES = 4_000_000


def get_config() -> ConfigDict:
    config = config_lib.default()
    config.batch_size = 512
    steps_per_epoch = IMAGES // config.batch_size
    config.steps = EPOCHS * steps_per_epoch
    config.optimizer.warmup_steps = WARMUP_EPOCHS * steps_per_epoch
    return config
