"""Retrieval: contrast and matching of whole images and texts, fine-tuned (paper, section 4.2)."""

from typing import Any

from mvlm_jax.tasks.pretrain import Pretrain
from mvlm_jax.training.task import Params


class Retrieval(Pretrain):
    """Pre-training without reconstruction; reports retrieval alone."""

    def evaluate(self, params: Params) -> dict[str, dict[str, Any]]:
        return self.recalls(params)
