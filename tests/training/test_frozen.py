"""What is frozen: not differentiated, not updated, and without optimizer state."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny import demo_flags, sizes
from toy import toy_config
from twenty import config_of

from mvlm_jax import config as config_lib
from mvlm_jax.aot.ahead import describe_step
from mvlm_jax.cli import train
from mvlm_jax.errors import UserError
from mvlm_jax.interop.parameters import flat, nested
from mvlm_jax.models.parameter_rules import frozen_layer_rules
from mvlm_jax.tasks.registry import open_task, validate
from mvlm_jax.training.accumulation import value_and_grad
from mvlm_jax.training.mesh import batch_sharding, make_mesh, param_shardings, shard_batch
from mvlm_jax.training.partition import ALL_TRAINED, join, partition_of
from mvlm_jax.training.program import make_program
from mvlm_jax.training.streams import Streams
from mvlm_jax.training.workdir import check_workdir

PATHS = {
    "image_encoder/cls_token": (1, 1, 4),
    "image_encoder/mask_token": (1, 1, 4),
    "image_encoder/layers/block/mlp/up/kernel": (3, 4, 8),
    "image_encoder/final_norm/scale": (4,),
    "text_encoder/token_embedding/embedding": (9, 4),
    "temperature": (),
}
IMAGE_ENCODER = r"image_encoder/.*"


def parameters():
    random = np.random.default_rng(0)
    return jax.tree.map(jnp.asarray, nested({path: random.normal(size=shape) for path, shape in PATHS.items()}))


def split(*, trained_layers=-1, patterns=()):
    rules = frozen_layer_rules("image_encoder", layers=3, trained=trained_layers)
    params = parameters()
    return params, partition_of(params, patterns=patterns, rules=rules).split(params)


def test_the_last_layers_train_with_what_comes_behind_them():
    params, parts = split(trained_layers=2)
    shapes = {path: leaf.shape for path, leaf in flat(parts.trained).items()}
    assert shapes == {
        "image_encoder/layers/block/mlp/up/kernel": (2, 4, 8),
        "image_encoder/final_norm/scale": (4,),
        "text_encoder/token_embedding/embedding": (9, 4),
        "temperature": (),
    }
    kernel = flat(params)["image_encoder/layers/block/mlp/up/kernel"]
    np.testing.assert_array_equal(flat(parts.frozen)["image_encoder/layers/block/mlp/up/kernel"], kernel[:1])
    jax.tree.map(np.testing.assert_array_equal, join(parts), params)


@pytest.mark.parametrize("how", [{"trained_layers": 0}, {"patterns": (IMAGE_ENCODER,)}])
def test_a_frozen_encoder_has_nothing_among_the_trained(how):
    params, parts = split(**how)
    assert set(flat(parts.frozen)) == {path for path in PATHS if path.startswith("image_encoder/")}
    assert set(flat(parts.trained)) == {path for path in PATHS if not path.startswith("image_encoder/")}
    jax.tree.map(np.testing.assert_array_equal, join(parts), params)


def test_where_nothing_is_frozen_the_parameters_are_the_trained_ones():
    params, parts = split()
    assert flat(parts.frozen) == {}
    assert all(flat(parts.trained)[path] is leaf for path, leaf in flat(params).items())


def test_a_pattern_that_matches_nothing_is_refused_with_the_nearest_that_do():
    with pytest.raises(
        UserError, match=r"'image_encodr/\.\*' matches the whole path of no parameter; near it: image_e"
    ):
        split(patterns=("temperature", "image_encodr/.*"))


def test_freezing_everything_is_refused():
    with pytest.raises(UserError, match=r"config.optimizer.frozen=\('\.\*',\) leaves none of 6 parameters to train"):
        split(patterns=(".*",))


def test_more_trained_layers_than_there_are_are_refused(shapes_dir):
    config = config_of(shapes_dir, **{"image_encoder.trained_layers": 2})
    with pytest.raises(UserError, match="trained_layers=2 must be at most config.image_encoder.layers=1"):
        validate(config)


def test_a_mistyped_pattern_ends_the_command_before_anything_is_written(demo_dir, tmp_path, capsys):
    flags = demo_flags(data_dir=demo_dir, workdir=tmp_path / "run", optimizer__frozen="('image_encodr/.*',)")
    assert train.run(flags) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("optimizer.frozen", ("head/.*",)),
        ("image_encoder.trained_layers", 0),
        ("optimizer.layer_decay", 0.5),
        ("optimizer.ema", 0.5),
        ("cross.dropout", 0.5),
        ("text_encoder.stochastic_depth", 0.5),
    ],
)
def test_a_run_is_not_continued_with_what_trains_otherwise(name, value, tmp_path):
    (tmp_path / "config.json").write_text(config_lib.to_json(toy_config()))
    with pytest.raises(UserError, match=f"is the workdir of another config: config.{name} is .* there and .* here"):
        check_workdir(tmp_path, config=toy_config(**{name: value}))


@pytest.mark.parametrize("pattern", [3, "image_encoder["])
def test_what_is_no_regular_expression_is_refused(pattern):
    config = config_lib.default()
    config.optimizer.frozen = (pattern,)
    with pytest.raises(UserError, match=rf"config.optimizer.frozen: {re.escape(repr(pattern))} is not a regular expr"):
        config_lib.validate(config)


needs_eight = pytest.mark.skipif(jax.device_count() != 8, reason="needs 8 devices")
# Embeddings of the whole batch, and a loss of each example; the layers of both encoders differ in number.
TWO_LOSSES = {"loss.mlm": 0.0, "loss.itm": 0.0, "image_encoder.layers": 3, "text_encoder.layers": 2, "batch_size": 16}
FREEZING = [
    pytest.param({"image_encoder.trained_layers": 0}, id="all"),
    pytest.param(
        {"image_encoder.trained_layers": 1, "text_encoder.trained_layers": 1, "optimizer.frozen": ("temperature",)},
        id="part",
    ),
]


def partition_for(config, task):
    return partition_of(task.parameter_shapes(config), patterns=config.optimizer.frozen, rules=task.frozen_rules)


@pytest.mark.slow
@needs_eight
@pytest.mark.parametrize("fields", FREEZING)
def test_five_steps_leave_what_is_frozen_bit_for_bit(fields, shapes_dir):
    config = config_of(shapes_dir, **TWO_LOSSES | fields)
    task, mesh = open_task(config, workdir=shapes_dir), make_mesh(data=2, fsdp=2, tensor=2)
    program, partition = make_program(task=task, config=config, mesh=mesh), partition_for(config, task)
    state = program.init()
    before = partition.split(jax.device_get(state.params))
    with jax.set_mesh(mesh):
        for _, batch in zip(range(5), task.train_batches(0)):
            state, _ = program.step(state, shard_batch(batch, program.batch_sharding))
    after = partition.split(jax.device_get(state.params))
    jax.tree.map(np.testing.assert_array_equal, after.frozen, before.frozen)
    assert jax.tree.leaves(before.frozen)
    used = flat(jax.tree.map(lambda new, old: bool((new != old).any()), after.trained, before.trained))
    unused = ("token_classifier", "matching_head", "text_cross_encoder")  # by losses that are switched off
    assert [path for path, changed in used.items() if not changed and not path.startswith(unused)] == []
    for moment in ("mu", "nu"):
        shapes = jax.tree.map(jnp.shape, optax.tree.get(state.opt_state, moment))
        assert flat(shapes) == flat(jax.tree.map(jnp.shape, after.trained))


def gradient(config, task, *, mesh, partition=ALL_TRAINED):
    """Of the first batch, with respect to the initial parameters."""
    params = jax.jit(task.init)(jax.random.key(0))
    shardings = param_shardings(params, mesh=mesh, rules=task.sharding_rules)

    def step(params, batch):
        rows = task.prepare(batch, Streams(seed=0, step=jnp.int32(3)))
        options = {"accumulate": config.accumulate, "mesh": mesh, "shardings": shardings, "partition": partition}
        return value_and_grad(task.objective, params, rows, **options)[1]

    batch = shard_batch(next(task.train_batches(0)), batch_sharding(mesh))
    return jax.device_get(jax.jit(step)(jax.device_put(params, shardings), batch))


@needs_eight
@pytest.mark.slow
@pytest.mark.parametrize("fields", FREEZING)
def test_the_gradient_is_that_of_the_same_parameters_where_nothing_is_frozen(fields, shapes_dir):
    """On one device, and in four microbatches on a mesh."""
    config = config_of(shapes_dir, **TWO_LOSSES)
    one_device = make_mesh(data=1, fsdp=1, tensor=1, devices=jax.devices()[:1])
    whole = gradient(config, open_task(config, workdir=shapes_dir), mesh=one_device)
    config = config_of(shapes_dir, **TWO_LOSSES | fields | {"model.remat": "dots"})
    task = open_task(config, workdir=shapes_dir)
    partition = partition_for(config, task)
    config.accumulate = 4
    found = gradient(config, task, mesh=make_mesh(data=2, fsdp=2, tensor=2), partition=partition)
    expected = partition.split(whole).trained
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), found, expected)


def test_a_pattern_over_a_whole_encoder_counts_as_no_trained_layers(shapes_dir):
    """In the operations that utilisation is measured by, as in those that are computed."""
    plain, by_pattern, by_layers, by_part, all_layers = (
        open_task(config_of(shapes_dir, **fields), workdir=shapes_dir).flops_per_step
        for fields in (
            {},
            {"optimizer.frozen": (IMAGE_ENCODER,)},
            {"image_encoder.trained_layers": 0},
            {"optimizer.frozen": (r"image_encoder/(?!mask_token).*",)},  # differentiated for the mask token
            {"image_encoder.trained_layers": 1},
        )
    )
    assert by_pattern == by_layers < by_part == plain
    # 16 images of 16 patches of 192 numbers: the kernel of the embedding, of width 16, has no gradient.
    assert plain - all_layers == 2 * 16 * 16 * 192 * 16


@pytest.mark.slow
def test_a_pattern_over_a_whole_encoder_drops_as_little_as_no_trained_layers(shapes_dir):
    """Its layers drop nothing, by whichever field it is frozen; the rest of the model drops as it did."""
    dropping = {f"{part}.dropout": 0.5 for part in ("image_encoder", "text_encoder", "cross")}
    by_pattern, by_layers, by_part = (
        first_loss(config_of(shapes_dir, **{"batch_size": 8, "loss.mlm": 0.0, "loss.itm": 0.0}, **dropping, **fields))
        for fields in (
            {"optimizer.frozen": (IMAGE_ENCODER,)},
            {"image_encoder.trained_layers": 0},
            {"optimizer.frozen": (r"image_encoder/(?!mask_token).*",)},
        )
    )
    assert by_pattern == by_layers
    assert abs(by_part - by_layers) > 1e-3


def first_loss(config):
    task = open_task(config, workdir=config.data.data_dir)
    params = jax.jit(task.init)(jax.random.key(0))

    def loss(params, batch):
        rows = task.prepare(batch, Streams(seed=0, step=jnp.int32(3)))
        one_device = make_mesh(data=1, fsdp=1, tensor=1, devices=jax.devices()[:1])
        shardings = param_shardings(params, mesh=one_device, rules=task.sharding_rules)
        return value_and_grad(task.objective, params, rows, accumulate=1, mesh=one_device, shardings=shardings)[0][0]

    return float(jax.jit(loss)(params, next(task.train_batches(0))))


@pytest.mark.slow
def test_a_frozen_encoder_costs_its_forward_pass_only(shapes_dir):
    """What the compiled step saves is what the backward pass of the encoder takes by itself."""
    fields = sizes(width=64, layers=2) | {"loss.mim": 0.0, "loss.mlm": 0.0, "loss.itm": 0.0}
    # A loop over layers would be counted once, however many there are.
    fields |= {"model.layer_loop": "unroll", "batch_size": 32, "image_encoder.layers": 3, "mesh.data": 1}
    devices = jax.devices()[:1]

    def step(**more):
        described = describe_step(config_of(shapes_dir, **fields | more), devices)
        return flops(described.program.step, described.program.state, described.batch), described

    def flops(function, *arguments):
        return jax.jit(function).lower(*arguments).compile().cost_analysis()["flops"]

    whole, described = step()
    frozen, _ = step(**{"image_encoder.trained_layers": 0})
    encoder = described.task.model.image_encoder
    image = described.batch["image"]
    patches = jax.ShapeDtypeStruct((32, 16, 192), jnp.float32)
    masks = jnp.zeros((32, 1, 16), bool)
    params = described.program.state.params["image_encoder"]

    def features(params, patches):
        return encoder.apply({"params": params}, patches, masks)

    def backward(params, patches, cotangent):
        value, pull = jax.vjp(lambda params: features(params, patches), params)
        return value, pull(cotangent)

    cotangent = jax.eval_shape(features, params, patches)
    alone = flops(backward, params, patches, cotangent) - flops(features, params, patches)
    assert image.shape == (32, 32, 32, 3)
    assert whole - frozen == pytest.approx(alone, rel=0.02)
