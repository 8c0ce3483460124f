"""AdamW with a learning rate for each group of parameters."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, PyTree
from optax.transforms import PartitionState

from mvlm_jax.errors import UserError
from mvlm_jax.training.rules import match_rules


def learning_rates(
    *, steps: int, warmup_steps: int, ends: Mapping[str, tuple[float, float]]
) -> dict[str, optax.Schedule]:
    """Each group's learning rate as a function of the update, counted from 1; the last update is `steps`.

    Args:
      ends: of each group: the rate after the warm-up, and at the last step.

    Raises:
      UserError: the warm-up leaves no steps for the cosine.
    """
    if warmup_steps >= steps:
        raise UserError(f"config.optimizer.warmup_steps={warmup_steps} must be less than config.steps={steps}")
    return {
        group: warmup_cosine(steps=steps, warmup_steps=warmup_steps, peak=peak, final=final)
        for group, (peak, final) in ends.items()
    }


def warmup_cosine(*, steps: int, warmup_steps: int, peak: float, final: float) -> optax.Schedule:
    """From 0 at update 0 straight to `peak` at `warmup_steps`, then along a cosine to `final` at `steps`.

    It differs from `optax.warmup_cosine_decay_schedule` in two ways. Optax keeps `final` as a multiple of `peak`, so
    that a peak of 0 stays at 0, whatever `final` is. Its other rates agree with these to 2e-7 of the peak, but not bit
    for bit, as continued runs need.
    """

    def schedule(update):
        update = jnp.asarray(update, jnp.float32)
        progress = jnp.clip((update - warmup_steps) / (steps - warmup_steps), 0.0, 1.0)
        cosine = final + (peak - final) * 0.5 * (1 + jnp.cos(jnp.pi * progress))
        return jnp.where(update < warmup_steps, peak * update / max(warmup_steps, 1), cosine)

    return schedule


def make_optimizer(
    params: PyTree,
    *,
    schedules: Mapping[str, optax.Schedule],
    rules: Sequence[tuple[str, str]],
    decay_rules: Sequence[tuple[str, bool]],
    weight_decay: float,
    b1: float,
    b2: float,
    clip_norm: float,
) -> optax.GradientTransformation:
    """AdamW over parameters (or their shapes), the decay scaled by the group's learning rate.

    Raises:
      ValueError: a rule list leaves a parameter uncovered, or names a group that has no schedule.
    """
    unknown = sorted({group for _, group in rules} - set(schedules))
    if unknown:
        raise ValueError(f"the optimizer rules name the group {unknown[0]!r}; there are {sorted(schedules)}")
    # Optax counts updates from 0: the first one would have a learning rate of 0.
    steps_down = {
        group: optax.scale_by_schedule(lambda count, rate=rate: -rate(count + 1)) for group, rate in schedules.items()
    }
    return optax.chain(
        optax.clip_by_global_norm(clip_norm) if clip_norm > 0 else optax.identity(),
        scale_by_adam(b1=b1, b2=b2),
        optax.add_decayed_weights(weight_decay, mask=match_rules(decay_rules, params)),
        optax.partition(steps_down, match_rules(rules, params)),
    )


def scale_by_adam(*, b1: float, b2: float) -> optax.GradientTransformationExtraArgs:
    """`optax.scale_by_adam`, whose moments change where they lie in memory.

    Its `update` takes `finite`: where it is false the state stays as it is. If old or new moments are chosen only after
    the update, XLA copies all of them first on a CPU, as the parameters are computed from the new ones too.
    """
    epsilon = 1e-8

    def update(gradients, state, params=None, *, finite: Bool[Array, ""] | bool = True, **unused):
        def moment(gradient, old, decay, order):
            return jnp.where(finite, (1 - decay) * gradient**order + decay * old, old)

        count = jnp.where(finite, optax.safe_increment(state.count), state.count)
        mu = jax.tree.map(lambda gradient, old: moment(gradient, old, b1, 1), gradients, state.mu)
        nu = jax.tree.map(lambda gradient, old: moment(gradient, old, b2, 2), gradients, state.nu)
        of_mu, of_nu = 1 - b1**count, 1 - b2**count
        updates = jax.tree.map(lambda m, v: (m / of_mu) / (jnp.sqrt(v / of_nu) + epsilon), mu, nu)
        return updates, optax.ScaleByAdamState(count=count, mu=mu, nu=nu)

    return optax.GradientTransformationExtraArgs(optax.scale_by_adam(b1=b1, b2=b2).init, update)


def one_group_of_encoders(opt_state: PyTree) -> PyTree:
    """The state as it was while the group `encoder` stood for both encoders."""
    return _with_groups(opt_state, lambda groups: {"encoder": groups["image_encoder"], "rest": groups["rest"]})


def a_group_for_each_encoder(opt_state: PyTree) -> PyTree:
    """Inverse of `one_group_of_encoders`. A group's state is its count of updates, the same in all."""
    return _with_groups(
        opt_state,
        lambda groups: {
            "image_encoder": groups["encoder"],
            "rest": groups["rest"],
            # The state is donated, so the two need buffers of their own.
            "text_encoder": jax.tree.map(jnp.copy, groups["encoder"]),
        },
    )


def _with_groups(opt_state: PyTree, change: Callable[[Mapping[str, Any]], dict[str, Any]]) -> PyTree:
    def is_partition(node: Any) -> bool:
        return isinstance(node, PartitionState)

    return jax.tree.map(
        lambda node: node._replace(inner_states=change(node.inner_states)) if is_partition(node) else node,
        opt_state,
        is_leaf=is_partition,
    )
