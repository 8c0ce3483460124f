"""Retrieval: contrast and matching of whole images and texts, fine-tuned (paper, section 4.2)."""

from typing import Any

from mvlm_jax.evaluation.retrieval import evaluate_retrieval
from mvlm_jax.tasks.pretrain import Pretrain
from mvlm_jax.training.task import Params


class Retrieval(Pretrain):
    """Pre-training without reconstruction; reports retrieval alone."""

    def evaluate(self, params: Params) -> dict[str, dict[str, Any]]:
        options = self.config.eval
        found = evaluate_retrieval(
            self.model,
            params,
            self.split,
            batch_size=options.batch_size,
            rerank=options.rerank,
            sweep=options.sweep,
            host_bytes=options.host_bytes,
        )
        return {f"retrieval-{self.eval_name}": found | {"left_out": self.split.left_out}}
