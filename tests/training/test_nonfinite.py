import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from toy import ToyTask, metrics_lines, toy_config

from mvlm_jax.errors import RunError
from mvlm_jax.training.loop import train
from mvlm_jax.training.mesh import make_mesh, shard_batch
from mvlm_jax.training.program import make_program


class Diverging(ToyTask):
    """Not finite at the given updates, counted from 1: the loss, or the gradient of a finite loss."""

    def __init__(self, *updates, only_gradient=False, **options):
        super().__init__(**options)
        self.updates = updates
        self.only_gradient = only_gradient

    def losses(self, params, rows):
        error, count = super().losses(params, rows)["squared_error"]
        bad = jnp.isin(rows["step"][0] + 1, jnp.array(self.updates))
        if self.only_gradient:
            # The square root of zero: its value is 0, its slope infinite.
            at_zero = params["head"]["bias"][0] - jax.lax.stop_gradient(params["head"]["bias"][0])
            error += jnp.where(bad, jnp.sqrt(jnp.where(bad, jnp.abs(at_zero), 1.0)), 0.0)
        else:
            error *= jnp.where(bad, jnp.nan, 1.0)
        return {"squared_error": (error, count)}


def states(task, steps):
    program = make_program(task=task, config=toy_config(), mesh=make_mesh(data=-1, fsdp=1, tensor=1))
    state, batches = program.init(), task.train_batches(0)
    for _ in range(steps):
        state, metrics = program.step(state, shard_batch(next(batches), program.batch_sharding))
        yield jax.device_get(state), jax.device_get(metrics)


@pytest.mark.parametrize("only_gradient", [False, True])
def test_a_step_that_is_not_finite_changes_no_parameter_and_no_moment(only_gradient):
    (before, _), (after, metrics), (later, _) = states(Diverging(2, only_gradient=only_gradient), 3)
    assert np.isfinite(metrics["loss"]) == only_gradient
    assert not np.isfinite(metrics["grad_norm"])
    jax.tree.map(np.testing.assert_array_equal, before.params, after.params)
    for name in ("mu", "nu"):
        old, new = (optax.tree.get(state.opt_state, name) for state in (before, after))
        jax.tree.map(np.testing.assert_array_equal, old, new)
    assert (before.step, after.step, later.step) == (1, 2, 3)
    assert not np.array_equal(later.params["head"]["kernel"], after.params["head"]["kernel"])
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(later))


def test_the_step_copies_no_moment_before_it_is_overwritten():
    task, mesh = ToyTask(), make_mesh(data=1, fsdp=1, tensor=1, devices=jax.devices()[:1])
    program = make_program(task=task, config=toy_config(), mesh=mesh)
    batch = shard_batch(next(task.train_batches(0)), program.batch_sharding)
    compiled = program.step.lower(program.state, batch).compile().as_text()
    copies = [line for line in compiled.splitlines() if " copy(" in line]
    assert "opt_state" in compiled
    assert not [line for line in copies if "__mu__" in line or "__nu__" in line]


def test_the_learning_rate_follows_the_step_though_updates_are_skipped():
    *_, (state, _) = states(Diverging(2, 3), 4)
    schedules = [
        node
        for node in jax.tree.leaves(state.opt_state, is_leaf=lambda node: isinstance(node, optax.ScaleByScheduleState))
        if isinstance(node, optax.ScaleByScheduleState)
    ]
    assert [int(schedule.count) for schedule in schedules] == [4, 4, 4]  # one of each group
    adam = optax.tree.get(state.opt_state, "ScaleByAdamState")
    assert int(adam.count) == 2


def test_skipped_updates_are_counted_and_warned_of(tmp_path, caplog):
    train(Diverging(2, 4, 5), config=toy_config(), workdir=tmp_path)
    lines = [line for line in metrics_lines(tmp_path) if "loss" in line]
    assert [line["skipped_updates"] for line in lines] == [0, 1, 1, 2, 3, 3, 3, 3, 3]
    assert [line["step"] for line in lines if line["loss"] is None] == [2, 4, 5]
    warned = [record.message for record in caplog.records if "its update is skipped" in record.message]
    assert [message.partition(":")[0] for message in warned] == ["step 2", "step 4", "step 5"]
    assert warned[-1].endswith("(2 in a row)")


def test_too_many_in_a_row_end_the_run_with_the_step_the_examples_and_the_last_good_checkpoint(tmp_path):
    config = toy_config(max_skipped_updates=4, **{"checkpoint.keep_last": 9})
    with pytest.raises(RunError) as error:
        train(Diverging(2, 3, *range(5, 20)), config=config, workdir=tmp_path)
    message = str(error.value)
    assert message.startswith("step 8: the loss is nan, the gradient's norm nan; 4 updates in a row were skipped")
    assert "config.max_skipped_updates=4" in message
    assert "the images of its batch are row-7-0, row-7-1," in message
    # That of step 6 holds the same parameters, but was made when the run had already gone wrong.
    assert message.endswith("the last good checkpoint is of step 3")
    assert "\n" not in message


def test_a_resumed_run_counts_on_and_stops_at_the_same_step(tmp_path):
    config = toy_config(max_skipped_updates=4)
    task = Diverging(*range(5, 20))

    def killed(step):
        if step == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(Diverging(*range(5, 20), before_batch=killed), config=config, workdir=tmp_path)
    for _ in range(2):
        with pytest.raises(RunError, match="step 8: .* 4 updates in a row"):
            train(task, config=config, workdir=tmp_path)


def test_without_a_checkpoint_the_message_says_so(tmp_path):
    with pytest.raises(RunError, match="there is no good checkpoint yet"):
        train(Diverging(1, 2), config=toy_config(max_skipped_updates=2), workdir=tmp_path)
