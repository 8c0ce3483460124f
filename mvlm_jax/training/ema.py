"""An exponential moving average of the trained parameters, which often does better than the last ones."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from mvlm_jax.training.task import Params


def decay_at(updates: Int[Array, ""], *, decay: float) -> Float[Array, ""]:
    """The decay of the next update after so many: min(decay, (1 + updates) / (10 + updates)).

    It rises from 0.1, so that the initial parameters, from which the average starts, are soon forgotten.
    """
    return jnp.minimum(decay, (1 + updates) / (10 + updates)).astype(jnp.float32)


def averaged(average: Params, params: Params, decay: Float[Array, ""]) -> Params:
    """The average after one more update, which gave `params`."""
    return jax.tree.map(lambda mean, new: (mean + (1 - decay) * (new - mean)).astype(mean.dtype), average, params)
