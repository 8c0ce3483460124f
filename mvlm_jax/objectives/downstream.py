"""Losses of the tasks that answer questions or choose a label (paper, section 4.2)."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from mvlm_jax.objectives.losses import cross_entropy, token_log_likelihoods
from mvlm_jax.training.task import Sums


def answer_losses(
    logits: Float[Array, "B A T V"], targets: Int[Array, "B A T"], weights: Float[Array, "B A"], *, pad_id: int
) -> Sums:
    """`answer`: negative log-likelihood of a question's weighted answers in nats; `token_accuracy` in percent."""
    likelihood = token_log_likelihoods(logits, targets, pad_id=pad_id).sum(axis=-1)
    is_token, weights_of_tokens = targets != pad_id, weights[:, :, None]
    correct = (logits.argmax(axis=-1) == targets) & is_token
    return {
        "answer": (-(likelihood * weights).sum(), jnp.float32(targets.shape[0])),
        "token_accuracy": (100 * (correct * weights_of_tokens).sum(), (is_token * weights_of_tokens).sum()),
    }


def classification_losses(logits: Float[Array, "B classes"], labels: Int[Array, " B"]) -> Sums:
    """`classification`: cross-entropy in nats; `accuracy` in percent."""
    count = jnp.float32(logits.shape[0])
    return {
        "classification": (cross_entropy(logits, labels).sum(), count),
        "accuracy": (100 * (logits.argmax(axis=-1) == labels).sum().astype(jnp.float32), count),
    }
