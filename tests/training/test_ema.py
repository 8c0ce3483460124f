"""The moving average of the parameters: its values, its checkpoints, and who reads it."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from safetensors.numpy import load_file
from tiny import demo_flags
from toy import ToyTask, toy_config

from mvlm_jax.cli import evaluate, train, weights
from mvlm_jax.interop.parameters import flat
from mvlm_jax.training.checkpoints import Checkpoints
from mvlm_jax.training.ema import decay_at
from mvlm_jax.training.loop import train as train_toy
from mvlm_jax.training.mesh import make_mesh, shard_batch
from mvlm_jax.training.partition import with_trained
from mvlm_jax.training.program import make_program
from mvlm_jax.training.state import with_weights

KERNEL = "encoder/kernel"


def toy_program(*, mesh=None, **fields):
    mesh = mesh or make_mesh(data=1, fsdp=1, tensor=1, devices=jax.devices()[:1])
    return make_program(task=ToyTask(), config=toy_config(**fields), mesh=mesh)


def toy_steps(program, batches):
    """The parameters and the average, before the first step and after each."""
    state = program.init()
    seen = [jax.device_get((flat(state.params), flat(state.ema)))]
    for batch in batches:
        state, _ = program.step(state, shard_batch(batch, program.batch_sharding))
        seen.append(jax.device_get((flat(state.params), flat(state.ema))))
    return seen


def batches(count):
    return [batch for _, batch in zip(range(count), ToyTask().train_batches(0))]


def test_the_decay_rises_to_its_value():
    rates = [float(decay_at(jnp.int32(updates), decay=0.9)) for updates in (0, 1, 9, 80, 81, 1000)]
    assert rates == pytest.approx([0.1, 2 / 11, 10 / 19, 0.9, 0.9, 0.9])


def test_the_average_is_that_of_the_parameters_after_each_update():
    (first, start), *later = toy_steps(toy_program(**{"optimizer.ema": 0.2}), batches(3))
    np.testing.assert_array_equal(start[KERNEL], first[KERNEL])
    expected = first[KERNEL]
    for decay, (params, average) in zip((0.1, 2 / 11, 0.2), later):
        expected = decay * expected + (1 - decay) * params[KERNEL]
        np.testing.assert_allclose(average[KERNEL], expected, rtol=1e-5, atol=1e-7)
        assert (average[KERNEL] != params[KERNEL]).any()


def test_a_skipped_update_leaves_the_average_and_its_decay_alone():
    good, bad = batches(2), batches(1)[0]
    bad["y"] = np.full_like(bad["y"], np.nan)
    program = toy_program(**{"optimizer.ema": 0.2})
    (_, start), (_, skipped), (params, average) = toy_steps(program, [bad, good[1]])
    jax.tree.map(np.testing.assert_array_equal, skipped, start)
    np.testing.assert_allclose(average[KERNEL], 0.1 * start[KERNEL] + 0.9 * params[KERNEL], rtol=1e-5, atol=1e-7)


def test_the_average_of_what_is_trained_alone_is_kept_and_sharded_as_its_parameters():
    if jax.device_count() != 8:
        pytest.skip("needs 8 devices")
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    fields = {"optimizer.ema": 0.2, "optimizer.frozen": ("head/.*",)}
    state = toy_program(mesh=mesh, **fields).init()
    assert set(flat(state.ema)) == {"encoder/kernel", "encoder/bias"}
    assert state.ema["encoder"]["kernel"].sharding.spec == PartitionSpec("fsdp", "tensor")
    (*_, (_, one)) = toy_steps(toy_program(**fields), batches(3))
    (*_, (_, eight)) = toy_steps(toy_program(mesh=mesh, **fields), batches(3))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), one, eight)


def test_the_average_starts_from_the_weights_that_a_run_starts_from():
    state = toy_program(**{"optimizer.ema": 0.2}).init()
    state = with_weights(state, {KERNEL: np.full((16, 8), 7.0, np.float32)})
    assert float(state.averaged["encoder"]["kernel"].min()) == 7.0
    np.testing.assert_array_equal(state.averaged["head"]["kernel"], state.params["head"]["kernel"])


def test_of_a_stack_the_average_may_have_the_last_layers():
    whole = with_trained({"a": {"b": jnp.arange(3.0), "c": jnp.float32(1)}}, {"a": {"b": jnp.full(2, 9.0)}})
    np.testing.assert_array_equal(whole["a"]["b"], [0, 9, 9])
    assert whole["a"]["c"] == 1


@pytest.mark.skipif(jax.device_count() != 8, reason="needs 8 devices")
def test_the_average_of_the_last_layers_is_put_in_their_place_where_they_are():
    """No device gets more of the parameters than its own part."""
    sharding = NamedSharding(make_mesh(data=1, fsdp=8, tensor=1), PartitionSpec(None, "fsdp"))
    layers, average = jnp.zeros((3, 16), device=sharding), jnp.ones((2, 16), device=sharding)
    layers = with_trained({"a": layers}, {"a": average})["a"]
    assert layers.sharding == sharding and {shard.data.shape for shard in layers.addressable_shards} == {(3, 2)}
    np.testing.assert_array_equal(layers[:, 0], [0, 1, 1])


def stored(directory, step, *, averaged):
    with Checkpoints.for_reading(directory / "checkpoints") as checkpoints:
        return jax.device_get(flat(checkpoints.restore_params(step, averaged=averaged)[1]))


def test_a_resumed_run_has_the_average_of_one_that_went_through(tmp_path):
    config = toy_config(**{"optimizer.ema": 0.9, "eval.ema": True})
    task = ToyTask()
    train_toy(task, config=config, workdir=tmp_path / "through")
    shutil.copytree(tmp_path / "through", tmp_path / "resumed")
    shutil.rmtree(tmp_path / "resumed/checkpoints/9")
    train_toy(ToyTask(), config=config, workdir=tmp_path / "resumed")
    through, resumed = (stored(tmp_path / name, 9, averaged=True) for name in ("through", "resumed"))
    jax.tree.map(np.testing.assert_array_equal, through, resumed)
    assert (through[KERNEL] != stored(tmp_path / "through", 9, averaged=False)[KERNEL]).any()
    # The toy's metric is the norm of a kernel: that of the average.
    result = json.loads(next((tmp_path / "through/eval").glob("*-ema.json")).read_text())
    assert result["norm"] == pytest.approx(np.linalg.norm(through["head/kernel"]))
    assert result["ema"] is True


def test_a_run_without_an_average_stores_none(tmp_path):
    train_toy(ToyTask(), config=toy_config(), workdir=tmp_path)
    assert {path.name for path in (tmp_path / "checkpoints/9").iterdir() if path.is_dir()} == {
        "params",
        "optimizer",
        "fingerprints",
    }


@pytest.mark.parametrize("command", ["evaluate", "export"])
def test_an_average_that_a_run_has_not_kept_is_refused(command, demo_run, tmp_path, capsys):
    if command == "evaluate":
        status = evaluate.run([f"--workdir={demo_run}", "--config.eval.ema=True", "--config.optimizer.ema=0.5"])
    else:
        status = weights.run(["export", f"--workdir={demo_run}", f"--output={tmp_path / 'out'}", "--ema"])
    error = capsys.readouterr().err.strip()
    assert status == 2
    assert len(error.splitlines()) == 1 and "kept no average of its parameters" in error
    assert "config.optimizer.ema=0.0" in error
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_evaluation_and_export_read_the_average(demo_dir, tmp_path, capsys):
    run = tmp_path / "run"
    fields = {"optimizer__ema": 0.9, "eval__ema": True, "text_encoder__trained_layers": 0}
    assert train.run(demo_flags(data_dir=demo_dir, workdir=run, steps=3, **fields)) == 0
    trained = {path.name: json.loads(path.read_text()) for path in (run / "eval").glob("*-ema.json")}
    assert len(trained) == 2
    capsys.readouterr()
    assert evaluate.run([f"--workdir={run}", "--config.optimizer.ema=0.0"]) == 2
    assert evaluate.run([f"--workdir={run}"]) == 0
    for name, metrics in trained.items():
        assert json.loads((run / "eval" / name).read_text()) == metrics
    assert weights.run(["export", f"--workdir={run}", f"--output={tmp_path / 'out'}", "--ema"]) == 0
    exported, average = load_file(tmp_path / "out/model.safetensors"), stored(run, 3, averaged=True)
    jax.tree.map(np.testing.assert_array_equal, exported, average)
    assert (exported["pixel_head/kernel"] != stored(run, 3, averaged=False)["pixel_head/kernel"]).any()
    card = (tmp_path / "out/README.md").read_text()
    assert "the moving average over updates (decay 0.9)" in card and "-ema" in card
