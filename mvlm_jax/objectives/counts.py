"""How many examples a batch is made of, and how many were not usable."""

import jax.numpy as jnp
from jaxtyping import Array, Int, Num


def example_counts(skipped: Int[Array, " B"]) -> dict[str, tuple[Num[Array, ""], Num[Array, ""]]]:
    """`examples` and `skipped_images` as (sum, count); both are totals over the whole batch.

    Args:
      skipped: the unusable examples that were stepped over for each row.
    """
    one = jnp.float32(1)
    return {"examples": (jnp.float32(skipped.shape[0]), one), "skipped_images": (skipped.sum(), one)}
