"""Image-text matching with hard negatives of the same group (paper, equation 4)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, Shaped

from mvlm_jax.objectives.losses import cross_entropy
from mvlm_jax.training.task import SumAndCount


class HardNegatives(NamedTuple):
    """For each pair a wrong text and a wrong image, as places in the pair's own group."""

    text: Int[Array, "groups G"]
    image: Int[Array, "groups G"]
    valid: Bool[Array, "groups G"]  # false where the whole group shares the pair's image


def negative_noise(key: Key[Array, ""], *, pairs: int, group: int) -> Float[Array, "B 2 G"]:
    """Gumbel noise for `hard_negatives`, drawn for the whole batch at once."""
    return jax.random.gumbel(key, (pairs, 2, group))


def hard_negatives(
    noise: Float[Array, "B 2 G"],
    z_image: Float[Array, "B E"],
    z_text: Float[Array, "B E"],
    image_id: Int[Array, " B"],
    temperature: Float[Array, ""],
) -> HardNegatives:
    """Samples negatives by the softmax of the contrastive similarity inside groups of consecutive pairs.

    Groups keep matching free of communication, and its negatives independent of the number of devices.
    """
    grouped = (in_groups(x, group=noise.shape[-1]) for x in (z_image, z_text, image_id, noise))
    z_image, z_text, image_id, noise = grouped
    similarity = jnp.einsum("gie,gje->gij", z_image, z_text) / temperature
    same = image_id[:, :, None] == image_id[:, None, :]
    logits = jnp.where(same, -jnp.inf, jax.lax.stop_gradient(similarity))
    # The largest of logits with Gumbel noise is a sample of their softmax.
    return HardNegatives(
        text=jnp.argmax(logits + noise[:, :, 0], axis=-1),
        image=jnp.argmax(logits.swapaxes(1, 2) + noise[:, :, 1], axis=-1),
        valid=~same.all(axis=-1),
    )


def in_groups(x: Shaped[Array, " B *rest"], *, group: int) -> Shaped[Array, "groups G *rest"]:
    return x.reshape(-1, group, *x.shape[1:])


def take_from_groups(x: Shaped[Array, " B *rest"], places: Int[Array, "groups G"]) -> Shaped[Array, " B *rest"]:
    """For each pair the member of its group that `places` names."""
    grouped = in_groups(x, group=places.shape[1])
    return jax.vmap(lambda members, chosen: members[chosen])(grouped, places).reshape(x.shape)


def matching_loss(logits: Float[Array, "B 3 2"], valid: Bool[Array, " B"]) -> SumAndCount:
    """Cross-entropy in nats over (own text, wrong text, wrong image) of each pair, as (sum, count)."""
    targets = jnp.broadcast_to(jnp.array([1, 0, 0]), logits.shape[:2])
    weights = matching_weights(valid)
    return (cross_entropy(logits, targets) * weights).sum(), weights.sum()


def matching_correct(logits: Float[Array, "B 3 2"], valid: Bool[Array, " B"]) -> Float[Array, ""]:
    """How many of the pairings are judged right; a pairing without a legal negative is not counted."""
    correct = (logits[..., 1] > logits[..., 0]) == jnp.array([True, False, False])
    return (correct * matching_weights(valid)).sum()


def matching_weights(valid: Bool[Array, " B"]) -> Float[Array, "B 3"]:
    return jnp.stack([jnp.ones_like(valid), valid, valid], axis=1).astype(jnp.float32)
