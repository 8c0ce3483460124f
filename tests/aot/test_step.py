"""The training step as XLA compiles it for eight devices: what it computes and what it sends, never run."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from communication import gathered_features, least_collective_bytes
from tiny import recipe, sizes

from mvlm_jax.aot.ahead import compile_step, describe_step
from mvlm_jax.aot.costs import bytes_by_kind, collectives, matrix_flops
from mvlm_jax.tasks.registry import describe_task, open_task

pytestmark = pytest.mark.skipif(jax.device_count() != 8, reason="needs 8 devices")

# Wide enough that features, weights and embeddings cannot be taken for one another; lengths: 36 patches and the class
# token, 24 masked patches, 16 words.
FIELDS = {
    "dtype": "float32", "image.size": 96, "image_encoder.patch": 16, "text_encoder.vocab_size": 1003,
    "text.max_length": 16,
    **sizes(width=128, heads=2, layers=2), "cross.layers": 1, "cross.decoder_layers": 1,
    "matching.group": 4, "batch_size": 64,
}  # fmt: skip
LENGTHS = (37, 36, 24, 16)


def config_on(**changes):
    config = recipe("pretrain_4m")
    config.update_from_flattened_dict(FIELDS | {name.replace("__", "."): value for name, value in changes.items()})
    return config


@pytest.fixture(
    scope="module",
    params=[
        pytest.param({"mesh__fsdp": 1}, id="data"),
        pytest.param({"mesh__fsdp": 4}, id="fsdp", marks=pytest.mark.slow),
        pytest.param({"accumulate": 2}, id="microbatches", marks=pytest.mark.slow),
    ],
)
def compiled(request):
    config = config_on(**request.param)
    return config, compile_step(config, jax.devices())


def sent_features(config, found):
    return gathered_features(found, batch_size=config.batch_size, lengths=LENGTHS, width=config.cross.width)


def forward_flops(config):
    """Of both encoders, for one pair."""
    width, image, text = config.cross.width, 37, 16
    pixels = 2 * 36 * 3 * 16**2 * width
    # Of a token in a layer: 4 products in attention and 2 x 4 in the MLP, and scores and their sum over all tokens.
    layer = sum(24 * tokens * width**2 + 4 * tokens**2 * width for tokens in (image, text))
    return pixels + config.image_encoder.layers * layer


def test_little_more_is_sent_than_must_be(compiled):
    config, step = compiled
    least = least_collective_bytes(
        describe_step(config, jax.devices()).program.state.params,
        batch_size=config.batch_size,
        projection=config.model.projection,
        dtype=jnp.float32,
    )
    sent = sum(bytes_by_kind(collectives(step.program)).values())
    assert least <= sent <= 1.1 * least


def test_no_feature_leaves_its_device(compiled):
    config, step = compiled
    found = collectives(step.program)
    assert found
    assert not list(sent_features(config, found))


def test_little_more_is_computed_than_the_losses_need(compiled):
    config, step = compiled
    needed = step.task.flops_per_step / 8
    # Microbatches encode the images and texts that are compared once more, forward only.
    again = config.batch_size / 8 * forward_flops(config) if config.accumulate > 1 else 0
    assert 0.95 * needed <= matrix_flops(step.program) <= 1.05 * needed + again


@pytest.mark.slow
def test_features_do_travel_where_groups_span_devices():
    """What the tests above would see if a device held a part of a group only."""
    config = config_on(matching__group=16, image_encoder__layers=1)
    step = compile_step(config, jax.devices())
    assert list(sent_features(config, collectives(step.program)))
    assert not step.own_rows


def test_memory_of_the_arguments_is_that_of_the_state(compiled):
    config, step = compiled
    described = describe_step(config, jax.devices())
    assert step.params == sum(leaf.size for leaf in jax.tree.leaves(described.program.state.params))
    assert step.arguments == pytest.approx(described.arguments, rel=0.01)
    assert step.own_rows and step.temporaries > 0


def test_a_described_task_is_the_task_without_its_data(demo_dir, tmp_path):
    config = recipe("demo")
    config.data.data_dir, config.batch_size = str(demo_dir), 32
    task, described = open_task(config, workdir=tmp_path / "run"), describe_task(config)
    rows = next(iter(task.train_batches(0)))
    assert {name: (value.shape, value.dtype) for name, value in rows.items()} == {
        name: (shape.shape, shape.dtype) for name, shape in described.batch_shapes.items()
    }
    assert described.tokenizer.ids == task.tokenizer.ids
    assert described.flops_per_step == task.flops_per_step
    assert dataclasses.asdict(described.model) == dataclasses.asdict(task.model)


def test_auto_means_the_type_of_the_devices_compiled_for():
    config = config_on(dtype="auto")
    assert describe_step(config, jax.devices()).task.model.dtype == jnp.float32
