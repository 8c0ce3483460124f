"""The state of a run, and the training step."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float, PyTree

from mvlm_jax.training.ema import averaged, decay_at
from mvlm_jax.training.mesh import batch_sharding, param_shardings, replicated
from mvlm_jax.training.nonfinite import IN_A_ROW, Skipped, kept_unless
from mvlm_jax.training.partition import Partition, Parts, join, with_trained
from mvlm_jax.training.rules import path_of
from mvlm_jax.training.streams import Streams
from mvlm_jax.training.task import Batch, Params, Sums

ValueAndGrad = Callable[[Params, Batch, Streams], tuple[tuple[Float[Array, ""], Sums], Params]]


@flax.struct.dataclass
class TrainState:
    """Arrays, or shapes or shardings in their places."""

    step: Any  # steps made so far, an int32 scalar
    params: PyTree
    opt_state: PyTree
    skipped: Skipped  # counts the steps that changed no parameter
    ema: PyTree = None  # moving average of the trained parameters, where one is kept

    @property
    def averaged(self) -> Params:
        """The parameters, those that are trained as their moving average."""
        return with_trained(self.params, self.ema)


def abstract_state(
    *,
    params: PyTree,
    optimizer: optax.GradientTransformation,
    partition: Partition,
    keep_average: bool,
    mesh: Mesh,
    sharding_rules: Sequence[tuple[str, PartitionSpec]],
) -> TrainState:
    """Shape, type and sharding of every array; `params` may be shapes.

    Moments and averages are sharded as their parameters. What is frozen has none.

    Raises:
      ValueError, UserError: as `param_shardings`.
    """
    shapes = jax.eval_shape(lambda params: _first_state(params, optimizer, partition, keep_average), params)
    shardings = jax.tree.map(lambda _: replicated(mesh), shapes)
    of_params = param_shardings(params, mesh=mesh, rules=sharding_rules)
    of_trained = partition.split_shardings(of_params).trained
    of_opt_state = optax.tree_map_params(optimizer, lambda _, sharding: sharding, shardings.opt_state, of_trained)
    of_ema = of_trained if keep_average else None
    shardings = dataclasses.replace(shardings, params=of_params, opt_state=of_opt_state, ema=of_ema)
    return jax.tree.map(
        lambda array, sharding: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding), shapes, shardings
    )


def make_init(
    *,
    init: Callable[[jax.Array], Params],
    optimizer: optax.GradientTransformation,
    partition: Partition,
    seed: int | None,
    shardings: TrainState,
) -> jax.stages.Wrapped:
    """The jitted () -> new state; no device holds more than its own part at any time.

    Args:
      seed: None: it is the argument of the function, a uint32 scalar.
    """

    def build(seed=seed) -> TrainState:
        params = init(Streams(seed=seed, step=jnp.int32(0)).key("init"))
        return _first_state(params, optimizer, partition, shardings.ema is not None)

    return jax.jit(build, out_shardings=shardings)


def _first_state(
    params: Params, optimizer: optax.GradientTransformation, partition: Partition, keep_average: bool
) -> TrainState:
    trained = partition.split(params).trained
    return TrainState(
        step=jnp.int32(0),
        params=params,
        opt_state=optimizer.init(trained),
        skipped=Skipped.none(),
        ema=trained if keep_average else None,
    )


def with_weights(state: TrainState, weights: Mapping[str, Float[np.ndarray, "..."]]) -> TrainState:
    """The state with other values for the parameters at these "/"-joined paths, the average too; shardings stay."""

    def replaced(key_path, leaf):
        value = weights.get(path_of(key_path))
        if value is None:
            return leaf
        # Of a stack of layers, the average may have the last ones only.
        value = (value[len(value) - len(leaf) :] if leaf.ndim else value).astype(leaf.dtype)
        # Each device gets its own part only; other parts may belong to other processes.
        return jax.make_array_from_callback(leaf.shape, leaf.sharding, lambda index: value[index])

    params, ema = jax.tree_util.tree_map_with_path(replaced, state.params), None
    if state.ema is not None:
        ema = jax.tree_util.tree_map_with_path(replaced, state.ema)
    return dataclasses.replace(state, params=params, ema=ema)


def make_train_step(
    *,
    value_and_grad: ValueAndGrad,
    optimizer: optax.GradientTransformation,
    partition: Partition,
    schedules: Mapping[str, optax.Schedule],
    seed: int | None,
    ema: float,
    shardings: TrainState,
    mesh: Mesh,
) -> jax.stages.Wrapped:
    """The jitted (state, batch) -> (state, metrics). The given state is donated; metrics are scalars by name.

    Args:
      value_and_grad: its gradients are those of the trained parameters.
      seed: None: it is a third argument of the step, a uint32 scalar, so that runs of many seeds share one program.
      ema: decay of the moving average, where the state has one.
    """

    def step(state, batch, seed=seed):
        streams = Streams(seed=seed, step=state.step)
        (total, sums), gradients = value_and_grad(state.params, batch, streams)
        before = partition.split(state.params)
        update = state.step + 1
        metrics = {name: numerator / count for name, (numerator, count) in sums.items()}
        metrics |= {f"learning_rate/{group}": rate(update) for group, rate in schedules.items()}
        metrics |= {"loss": total, "grad_norm": optax.tree.norm(gradients)}
        finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(metrics["grad_norm"])
        # A skipped update changes no moment; schedules advance either way, as the step does.
        updates, opt_state = optimizer.update(gradients, state.opt_state, before.trained, finite=finite)
        skipped = state.skipped.counted(finite)
        metrics |= {"skipped_updates": skipped.total, IN_A_ROW: skipped.in_a_row}
        trained = kept_unless(finite, optax.apply_updates(before.trained, updates), before.trained)
        params = join(Parts(trained, before.frozen))
        average = None
        if state.ema is not None:
            decay = decay_at(state.step - state.skipped.total, decay=ema)
            average = kept_unless(finite, averaged(state.ema, trained, decay), state.ema)
        return TrainState(step=update, params=params, opt_state=opt_state, skipped=skipped, ema=average), metrics

    return jax.jit(
        step,
        in_shardings=(shardings, batch_sharding(mesh), *(() if seed is not None else (replicated(mesh),))),
        out_shardings=(shardings, replicated(mesh)),
        donate_argnums=0,
    )
