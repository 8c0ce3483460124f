"""The gradient of the whole batch, taken over it at once or a microbatch at a time.

A contrastive loss compares all pairs of a batch, so the gradients of its microbatches do not add up to its own. As in
GradCache (Gao et al., 2021): the embeddings of every microbatch are computed first and kept, the loss of the whole
batch gives the gradient with respect to them, and a pass over the microbatches carries it on to the parameters.
"""

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PyTree

from mvlm_jax.training.mesh import BATCH_AXES
from mvlm_jax.training.partition import ALL_TRAINED, OfParts, Partition, Parts
from mvlm_jax.training.per_device import Local, per_device, varying
from mvlm_jax.training.task import Objective, Params, Rows, Sums

ValueAndGradient = tuple[tuple[Float[Array, ""], Sums], Params]


@dataclasses.dataclass(frozen=True)
class Independent:
    """The objective of examples that are not compared with each other."""

    losses: Callable[[Params, Rows], Sums]
    weights: Mapping[str, float]
    dtype: DTypeLike
    group: int = 1
    counts: Callable[[Rows], Sums] = lambda rows: {}  # metrics that are counted over the whole batch

    def row_losses(self, params: Params, rows: Rows) -> tuple[Sums, Rows]:
        return self.losses(params, rows), ()

    def embed(self, params: Params, rows: Rows) -> Rows:
        return ()

    def batch_losses(self, params: Params, embeddings: Rows, rows: Rows) -> Sums:
        return self.counts(rows)


def value_and_grad(
    objective: Objective,
    params: Params,
    rows: Rows,
    *,
    accumulate: int,
    mesh: Mesh,
    shardings: PyTree[NamedSharding],
    partition: Partition = ALL_TRAINED,
) -> ValueAndGradient:
    """((loss, sums), gradients) of the whole batch, the same to rounding for any number of microbatches.

    Args:
      accumulate: microbatches; each is an equal share of every device's rows.
      shardings: of the parameters.
      partition: which of the parameters are trained; there are gradients of these only.
    """
    parts = partition.split(params)
    objective = OfParts(objective)
    on_devices = partial(
        per_device,
        mesh=mesh,
        shardings=partition.split_shardings(shardings),
        dtype=objective.dtype,
        multiple=accumulate * objective.group,
    )
    if accumulate > 1:
        cut = partial(_cut, count=accumulate, mesh=mesh)
        return _accumulated(objective, parts, rows, on_devices=on_devices, cut=cut)

    def loss(trained):
        return whole_batch(objective, Parts(trained, parts.frozen), rows, on_devices=on_devices)

    return jax.value_and_grad(loss, has_aux=True)(parts.trained)


def whole_batch(
    objective: Objective, params: Params, rows: Rows, *, on_devices: Callable[[Local], Local] = lambda local: local
) -> tuple[Float[Array, ""], Sums]:
    """The loss of the whole batch and all its sums.

    Args:
      on_devices: spreads a function of parameters and rows over devices, as `per_device` does.
    """
    sums, embeddings = on_devices(objective.row_losses)(params, rows)
    sums |= objective.batch_losses(params, embeddings, rows)
    return weighted_mean(sums, objective.weights), sums


def weighted_mean(sums: Sums, weights: Mapping[str, float]) -> Float[Array, ""]:
    """The weighted sum of the means of the losses among `sums`; a mean is 0 where nothing was counted."""
    means = {name: total / jnp.maximum(count, 1) for name, (total, count) in sums.items()}
    return sum((weight * means[name] for name, weight in weights.items() if name in means), jnp.float32(0))


def _accumulated(
    objective: OfParts,
    params: Parts,
    rows: Rows,
    *,
    on_devices: Callable[[Local], Local],
    cut: Callable[[Rows], Rows],
) -> ValueAndGradient:
    def embed(params, rows):
        each = jax.lax.map(lambda part: objective.embed(params, part), cut(rows))
        return {}, jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), each)

    def batch_loss(trained, embeddings):
        sums = objective.batch_losses(Parts(trained, params.frozen), embeddings, rows)
        return weighted_mean(sums, objective.weights), sums

    def count(params, rows):
        sums, _ = objective.row_losses(params, rows)
        return {name: count for name, (_, count) in sums.items()}, ()

    def microbatch_loss(trained, frozen, part):
        rows, pull = part
        sums, embeddings = objective.row_losses(Parts(trained, frozen), rows)
        totals = {name: total for name, (total, _) in sums.items()}
        loss = weighted_mean({name: (total, counts[name]) for name, total in totals.items()}, objective.weights)
        # Its gradient is that of the whole batch's losses through these embeddings.
        pulled = sum(map(jnp.vdot, jax.tree.leaves(pull), jax.tree.leaves(embeddings)), jnp.float32(0))
        return loss + pulled, totals

    def summed(params, parts):
        return _summed_with_gradient(microbatch_loss)(*params, jax.tree.map(cut, parts)), ()

    def row_loss(trained, pull):
        (loss, totals), _ = on_devices(summed)(Parts(trained, params.frozen), (rows, pull))
        return loss, totals

    _, embeddings = on_devices(embed)(params, rows)
    of_batch = jax.value_and_grad(batch_loss, argnums=(0, 1), has_aux=True)
    (_, sums), (gradients, pull) = of_batch(params.trained, embeddings)
    # Counts need neither features nor losses; the compiler removes those as unused.
    counts, _ = on_devices(count)(params, rows)
    (_, totals), further = jax.value_and_grad(row_loss, has_aux=True)(params.trained, pull)
    sums |= {name: (total, counts[name]) for name, total in totals.items()}
    return (weighted_mean(sums, objective.weights), sums), jax.tree.map(jnp.add, gradients, further)


def _summed_with_gradient(loss: Callable[..., tuple[Float[Array, ""], Any]]) -> Callable[..., Any]:
    """(trained, frozen, parts) -> the sums of the results of `loss` over the leading axis of `parts`.

    The gradient of the first sum is computed part by part in the forward pass, so that no part is kept for later. It is
    computed with respect to `trained` alone.
    """
    with_gradient = jax.value_and_grad(loss, has_aux=True)

    def forward(trained, frozen, parts):
        def add(carry, part):
            (value, aux), gradients = with_gradient(trained, frozen, part)
            return jax.tree.map(
                lambda total, more: total + more.astype(total.dtype), carry, (value, aux, gradients)
            ), ()

        value, aux = jax.eval_shape(loss, trained, frozen, jax.tree.map(lambda x: x[0], parts))
        # In float32, whatever type the parameters were gathered in.
        zeros = jax.tree.map(lambda x: varying(jnp.zeros(x.shape, jnp.float32)), (value, aux, trained))
        (value, aux, gradients), _ = jax.lax.scan(add, zeros, parts)
        return (value, aux), jax.tree.map(lambda total, param: total.astype(param.dtype), gradients, trained)

    @jax.custom_vjp
    def run(trained, frozen, parts):
        return forward(trained, frozen, parts)[0]

    def backward(gradients, cotangents):
        return jax.tree.map(lambda gradient: (cotangents[0] * gradient).astype(gradient.dtype), gradients), None, None

    run.defvjp(forward, backward)
    return run


def _cut(rows: Rows, *, count: int, mesh: Mesh) -> Rows:
    """[B, …] to [count, B / count, …]; each part of a global batch is spread over all devices."""
    spread = NamedSharding(mesh, PartitionSpec(None, BATCH_AXES))
    whole = not set(BATCH_AXES) & set(jax.sharding.get_abstract_mesh().manual_axes)

    def of_leaf(x):
        parts = x.reshape(count, -1, *x.shape[1:])
        return jax.lax.with_sharding_constraint(parts, spread) if whole else parts

    return jax.tree.map(of_leaf, rows)
