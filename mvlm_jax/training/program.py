"""The functions that are compiled for a run, and the shapes of its state, known before any array exists."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding
from ml_collections import ConfigDict

from mvlm_jax.training.accumulation import value_and_grad
from mvlm_jax.training.layer_decay import layer_scales, scale_updates
from mvlm_jax.training.mesh import batch_sharding, check_batch_size
from mvlm_jax.training.optimizer import learning_rates, make_optimizer
from mvlm_jax.training.partition import partition_of
from mvlm_jax.training.state import TrainState, abstract_state, make_init, make_train_step
from mvlm_jax.training.streams import Streams
from mvlm_jax.training.task import Params, Task


class Program(NamedTuple):
    state: TrainState  # shapes with shardings
    batch_sharding: NamedSharding
    init: Callable[..., TrainState]  # () -> state
    trained: Params  # shapes of the parameters that are not frozen
    step: Any  # (state, batch) -> (state, metrics); `step.lower(…).compile()` compiles it ahead of time

    def of_seed(self, seed: int) -> "Program":
        """The program of one run, from one that was made for any seed; it is compiled once for all of them."""
        init, step = self.init, self.step
        return self._replace(
            init=lambda: init(np.uint32(seed)), step=lambda state, batch: step(state, batch, np.uint32(seed))
        )


def make_program(*, task: Task, config: ConfigDict, mesh: Mesh, any_seed: bool = False) -> Program:
    """
    Args:
      any_seed: whether `init` and `step` take the seed as their last argument, a uint32 scalar, in place of
        `config.seed`: one program for runs that differ in their seeds.

    Raises:
      UserError: the batch, a parameter or the warm-up does not fit the mesh or the run; a pattern of what is frozen
        matches nothing, or all is frozen.
      ValueError: the task's rules leave a parameter uncovered.
    """
    check_batch_size(config.batch_size, mesh, accumulate=config.accumulate)
    options = config.optimizer
    schedules = learning_rates(
        steps=config.steps,
        warmup_steps=options.warmup_steps,
        ends={
            "image_encoder": (options.image_encoder_peak, options.image_encoder_final),
            "text_encoder": (options.text_encoder_peak, options.text_encoder_final),
            "rest": (options.peak, options.final),
        },
    )
    params = jax.eval_shape(lambda: task.init(Streams(seed=config.seed, step=jnp.int32(0)).key("init")))
    partition = partition_of(params, patterns=options.frozen, rules=task.frozen_rules)
    trained = jax.eval_shape(partition.split, params).trained
    optimizer = make_optimizer(
        trained,
        schedules=schedules,
        rules=task.optimizer_rules,
        decay_rules=task.decay_rules,
        weight_decay=options.weight_decay,
        b1=options.b1,
        b2=options.b2,
        clip_norm=options.clip_norm,
    )
    if options.layer_decay < 1:
        scales = layer_scales(params, rules=task.layer_rules, decay=options.layer_decay)
        optimizer = optax.chain(optimizer, scale_updates(partition.split(scales).trained))
    state = abstract_state(
        params=params,
        optimizer=optimizer,
        partition=partition,
        keep_average=options.ema > 0,
        mesh=mesh,
        sharding_rules=task.sharding_rules,
    )
    shardings = jax.tree.map(lambda array: array.sharding, state)
    seed = None if any_seed else config.seed

    def step_value_and_grad(params, batch, streams):
        rows = task.prepare(batch, streams)
        return value_and_grad(
            task.objective,
            params,
            rows,
            accumulate=config.accumulate,
            mesh=mesh,
            shardings=shardings.params,
            partition=partition,
        )

    return Program(
        state=state,
        batch_sharding=batch_sharding(mesh),
        init=make_init(init=task.init, optimizer=optimizer, partition=partition, seed=seed, shardings=shardings),
        trained=trained,
        step=make_train_step(
            value_and_grad=step_value_and_grad,
            optimizer=optimizer,
            partition=partition,
            schedules=schedules,
            seed=seed,
            ema=options.ema,
            shardings=shardings,
            mesh=mesh,
        ),
    )
