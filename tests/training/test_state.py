import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec
from toy import ToyTask, toy_config

from mvlm_jax.training.mesh import make_mesh, shard_batch
from mvlm_jax.training.program import make_program

pytestmark = pytest.mark.skipif(jax.device_count() != 8, reason="needs 8 devices")


def program_on(*, task=None, devices=None, data=-1, fsdp=1, tensor=1):
    mesh = make_mesh(data=data, fsdp=fsdp, tensor=tensor, devices=devices)
    return make_program(task=task or ToyTask(), config=toy_config(), mesh=mesh)


def test_parameters_and_both_moments_are_born_sharded():
    state = program_on(data=2, fsdp=2, tensor=2).init()
    moments = optax.tree.get(state.opt_state, "mu"), optax.tree.get(state.opt_state, "nu")
    for tree in (state.params, *moments):
        assert tree["encoder"]["kernel"].sharding.spec == PartitionSpec("fsdp", "tensor")
        assert {shard.data.shape for shard in tree["encoder"]["kernel"].addressable_shards} == {(8, 4)}
        assert tree["head"]["kernel"].sharding.is_fully_replicated
    assert state.step.sharding.is_fully_replicated


def test_the_initial_parameters_do_not_depend_on_the_mesh():
    one = program_on(devices=jax.devices()[:1]).init()
    eight = program_on(data=2, fsdp=2, tensor=2).init()
    jax.tree.map(np.testing.assert_array_equal, one.params, eight.params)


def test_the_described_state_is_the_state():
    program = program_on(data=2, fsdp=2, tensor=2)
    state = program.init()
    jax.tree.map(
        lambda described, array: (
            np.testing.assert_equal((described.shape, described.dtype), (array.shape, array.dtype)),
            np.testing.assert_(described.sharding.is_equivalent_to(array.sharding, array.ndim)),
        ),
        program.state,
        state,
    )


def test_a_step_keeps_the_shardings_and_consumes_the_state():
    program = program_on(data=2, fsdp=2, tensor=2)
    old = program.init()
    new, _ = program.step(old, shard_batch(next(ToyTask().train_batches(0)), program.batch_sharding))
    jax.tree.map(
        lambda described, array: np.testing.assert_(described.sharding.is_equivalent_to(array.sharding, array.ndim)),
        program.state,
        new,
    )
    assert all(array.is_deleted() for array in jax.tree.leaves(old.params))


def test_the_mesh_does_not_change_what_is_computed():
    metrics = {}
    for name, program in {
        "one": program_on(devices=jax.devices()[:1]),
        "data": program_on(),
        "all": program_on(data=2, fsdp=2, tensor=2),
    }.items():
        state = program.init()
        batches = ToyTask().train_batches(0)
        for _ in range(3):
            state, metrics[name] = program.step(state, shard_batch(next(batches), program.batch_sharding))
    for name in ("data", "all"):
        jax.tree.map(
            lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-5), metrics["one"], metrics[name]
        )


def test_metrics_are_divided_once_over_the_global_batch():
    class Uneven(ToyTask):
        def prepare(self, batch, streams):
            # Three of sixteen rows are counted, all of them on the first devices.
            return super().prepare(batch, streams) | {"counted": (jnp.arange(16) < 3).astype(jnp.float32)}

        def losses(self, params, rows):
            slope = 3 * params["head"]["bias"].sum() * rows["y"].size
            return {
                "squared_error": (slope, jnp.float32(rows["y"].size)),
                "mean": ((rows["counted"] * 6).sum(), rows["counted"].sum()),
            }

    program = program_on(task=Uneven())
    _, metrics = program.step(program.init(), shard_batch(next(ToyTask().train_batches(0)), program.batch_sharding))
    assert float(metrics["mean"]) == 6.0
    assert float(metrics["grad_norm"]) == 3.0
    assert float(metrics["learning_rate/rest"]) == pytest.approx(5e-3)


def test_the_step_compiles_without_any_array():
    program = program_on(data=2, fsdp=2, tensor=2)
    rows = next(ToyTask().train_batches(0))
    shapes = {name: jax.ShapeDtypeStruct(value.shape, value.dtype) for name, value in rows.items()}
    assert program.step.lower(program.state, shapes).compile().memory_analysis() is not None


def test_one_program_serves_every_seed_and_gives_what_the_program_of_that_seed_gives():
    mesh, batch = make_mesh(data=-1, fsdp=1, tensor=1), next(ToyTask().train_batches(0))
    of_any = make_program(task=ToyTask(), config=toy_config(), mesh=mesh, any_seed=True)
    for seed in (0, 2**32 - 1):
        for program in (of_any.of_seed(seed), make_program(task=ToyTask(), config=toy_config(seed=seed), mesh=mesh)):
            state = program.init()
            first = jax.device_get(state.params)
            state, metrics = program.step(state, shard_batch(batch, program.batch_sharding))
            found = jax.device_get((first, state.params, metrics))
            if program.state is of_any.state:
                expected = found
        jax.tree.map(np.testing.assert_array_equal, found, expected)
    assert of_any.step._cache_size() == of_any.init._cache_size() == 1
