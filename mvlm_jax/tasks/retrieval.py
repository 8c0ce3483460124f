"""Retrieval: contrast and matching of whole images and texts, fine-tuned (paper, section 4.2)."""

from ml_collections import ConfigDict

from mvlm_jax.errors import UserError
from mvlm_jax.tasks.pretrain import Pretrain


class Retrieval(Pretrain):
    """Pre-training without reconstruction; reports retrieval alone."""

    name = "retrieval"
    about = Pretrain.about._replace(
        description="of image-text pairs, fine-tuned by contrast and matching of whole images and texts"
    )

    @classmethod
    def check(cls, config: ConfigDict) -> None:
        super().check(config)
        if config.loss.mim or config.loss.mlm:
            raise UserError(
                f"config.loss.mim={config.loss.mim} and config.loss.mlm={config.loss.mlm} must be 0 in "
                f"config.task={cls.name}, which rebuilds nothing"
            )
