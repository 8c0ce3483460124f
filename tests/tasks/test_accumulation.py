"""Microbatches change what a step costs, never what it computes; whole runs are compared in training/test_meshes.py."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from tiny import recipe, sizes

from mvlm_jax.data.text import train_tokenizer
from mvlm_jax.errors import UserError
from mvlm_jax.tasks import registry
from mvlm_jax.tasks.pretrain import Pretrain
from mvlm_jax.training.accumulation import Independent, value_and_grad
from mvlm_jax.training.mesh import batch_sharding, check_batch_size, make_mesh, param_shardings, shard_batch
from mvlm_jax.training.program import make_program
from mvlm_jax.training.streams import Streams

pytestmark = pytest.mark.skipif(jax.device_count() != 8, reason="needs 8 devices")

BATCH = 32
LOSSES = ("mim", "mlm", "itc", "itm")
COLOURS = ["red", "green", "blue", "white", "black", "yellow", "grey", "brown"]
# Two layers a part: stochastic depth never skips the first one.
DROPPING = {
    f"{part}__{name}": value
    for part in ("image_encoder", "text_encoder", "cross")
    for name, value in (("dropout", 0.1), ("stochastic_depth", 0.1), ("layers", 2))
}
SMALL = {
    "steps": 20,
    "batch_size": BATCH,
    "matching.group": 4,
    "image.size": 32,
    "mask.image_cell": 2,
    "mask.image_ratio": 0.6,
    **sizes(width=16, layers=1),
    "cross.layers": 1,
    "optimizer.warmup_steps": 2,
    "optimizer.peak": 1e-3,
    "optimizer.image_encoder_peak": 1e-3,
    "optimizer.text_encoder_peak": 1e-3,
}


def small_config(**fields):
    config = recipe("demo")
    config.update_from_flattened_dict(SMALL | {name.replace("__", "."): value for name, value in fields.items()})
    registry.validate(config)
    return config


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(captions(0), kind="roberta", vocab_size=400)


def captions(step):
    """Of uneven length, so that microbatches hold unequal numbers of masked words."""
    colours = np.random.default_rng(step).choice(COLOURS, (BATCH, 8))
    return [" ".join(["a", *row[: 1 + place % 8], "shape"]) for place, row in enumerate(colours)]


def rows(config, tokenizer, step):
    rng = np.random.default_rng((1, step))
    size = config.image.size
    # Images repeat inside groups and across microbatches; the first group is of one image and has no negatives.
    image_id = rng.integers(0, 12, BATCH).astype(np.int32)
    image_id[:4] = 0
    return {
        "image": rng.integers(0, 256, (12, size, size, 3)).astype(np.uint8)[image_id],
        "text": tokenizer.encode(captions(step), max_length=config.text.max_length),
        "image_id": image_id,
        "skipped": np.zeros(BATCH, np.int32),
    }


def pretraining(config, tokenizer):
    return Pretrain(config=config, tokenizer=tokenizer)


def weighted(switched_on, **fields):
    weights = {f"loss__{name}": 0.5 + place if name in switched_on else 0.0 for place, name in enumerate(LOSSES)}
    return small_config(**weights, **fields)


@pytest.fixture(scope="module")
def params_of(tokenizer):
    """Away from the initial values, where embeddings are all alike and some gradients all but vanish."""

    @functools.cache
    def params_of(**fields):
        params = jax.jit(pretraining(weighted(LOSSES, **fields), tokenizer).init)(jax.random.key(0))
        keys = iter(jax.random.split(jax.random.key(1), len(jax.tree.leaves(params))))
        return jax.tree.map(lambda x: x + 0.05 * jax.random.normal(next(keys), x.shape) * (x.ndim > 0), params)

    return params_of


@pytest.fixture(scope="module")
def result(tokenizer, params_of):
    """Losses, sums and gradient of one batch, in so many microbatches on a mesh."""

    def result(switched_on, *, accumulate, mesh, **fields):
        config, params = weighted(switched_on, **fields), params_of(**fields)
        task = pretraining(config, tokenizer)
        shardings = param_shardings(params, mesh=mesh, rules=task.sharding_rules)

        def step(params, batch):
            drawn = task.prepare(batch, Streams(seed=0, step=jnp.int32(3)))
            return value_and_grad(task.objective, params, drawn, accumulate=accumulate, mesh=mesh, shardings=shardings)

        batch = shard_batch(rows(config, tokenizer, 0), batch_sharding(mesh))
        return jax.device_get(jax.jit(step)(jax.device_put(params, shardings), batch))

    return result


@pytest.fixture(scope="module")
def one_device():
    return make_mesh(data=1, fsdp=1, tensor=1, devices=jax.devices()[:1])


@pytest.fixture(scope="module")
def whole_batch(result, one_device):
    """The same of the whole batch at once on one device; computed once for the same losses."""
    return functools.cache(functools.partial(result, accumulate=1, mesh=one_device))


# Of 32 pairs, each of four devices has two microbatches of a whole group, or four of half a one, which all then share.
@pytest.mark.parametrize(
    ("switched_on", "devices", "accumulate"),
    [
        (LOSSES, 1, 4),
        pytest.param(LOSSES, 8, 4, marks=pytest.mark.slow),
        pytest.param(LOSSES, 8, 2, marks=pytest.mark.slow),
        *(pytest.param((name,), 1, 4, marks=pytest.mark.slow) for name in LOSSES),
    ],
)
def test_the_gradient_is_that_of_the_whole_batch(result, whole_batch, one_device, switched_on, devices, accumulate):
    mesh = one_device if devices == 1 else make_mesh(data=2, fsdp=2, tensor=2)
    whole = whole_batch(switched_on)
    assert {name for name in LOSSES if name in whole[0][1]} == set(switched_on)
    assert_same(result(switched_on, accumulate=accumulate, mesh=mesh), whole)


@pytest.mark.slow
def test_the_gradient_is_that_of_the_whole_batch_with_dropout(result, whole_batch):
    # Two microbatches of a whole group on each part of the batch.
    received = result(LOSSES, accumulate=2, mesh=make_mesh(data=2, fsdp=2, tensor=2), **DROPPING)
    assert_same(received, whole_batch(LOSSES, **DROPPING))


def assert_same(accumulated, expected):
    (loss, sums), gradient = expected
    (accumulated_loss, accumulated_sums), accumulated = accumulated
    np.testing.assert_allclose(accumulated_loss, loss, rtol=1e-5)
    assert accumulated_sums.keys() == sums.keys()
    for name, (total, count) in sums.items():
        np.testing.assert_allclose(accumulated_sums[name][0], total, rtol=1e-5, err_msg=name)
        assert accumulated_sums[name][1] == count, name
    whole = np.sqrt(sum(np.square(leaf).sum() for leaf in jax.tree.leaves(gradient)))
    for (path, expected), value in zip(
        jax.tree_util.tree_leaves_with_path(gradient), jax.tree.leaves(accumulated), strict=True
    ):
        difference = np.linalg.norm(value - expected)
        # Rounding leaves dust where a gradient is exactly zero in theory (a key's bias shifts every score alike).
        assert difference <= 1e-5 * np.linalg.norm(expected) + 1e-7 * whole, jax.tree_util.keystr(path)


def test_independent_losses_are_means_over_the_batch_though_microbatches_count_unequally():
    mesh = make_mesh(data=8, fsdp=1, tensor=1)
    weight = np.zeros(BATCH, np.float32)
    weight[:5] = [1, 2, 3, 4, 5]
    examples = {"x": np.arange(BATCH, dtype=np.float32), "weight": weight}

    def losses(params, rows):
        return {"squares": ((params * rows["x"] * rows["weight"]).sum(), rows["weight"].sum())}

    objective = Independent(losses, weights={"squares": 3.0}, dtype=jnp.float32)
    step = jax.jit(lambda params, rows: value_and_grad(
        objective, params, rows, accumulate=4, mesh=mesh, shardings=NamedSharding(mesh, PartitionSpec())
    ))  # fmt: skip
    (loss, sums), gradient = step(jnp.float32(2), shard_batch(examples, batch_sharding(mesh)))
    # sum of x * weight = 0 + 2 + 6 + 12 + 20 = 40; over the weights' 15, times 3: 8
    assert float(gradient) == pytest.approx(8)
    assert float(loss) == pytest.approx(16)
    assert [float(x) for x in sums["squares"]] == pytest.approx([80, 15])


def test_a_batch_that_does_not_give_each_microbatch_whole_groups_is_refused():
    with pytest.raises(UserError, match=r"batch_size=32 must be a multiple of 48, .*accumulate=12 times .*group=4"):
        small_config(accumulate=12)
    with pytest.raises(UserError, match=r"multiple of 24, .* data \(8\) and fsdp \(1\), times config.accumulate=3"):
        check_batch_size(32, make_mesh(data=8, fsdp=1, tensor=1), accumulate=3)


def lowered(tokenizer, *, devices=None, **fields):
    config = small_config(**fields)
    sizes = {"data": -1, "fsdp": config.mesh.fsdp, "tensor": config.mesh.tensor}
    program = make_program(task=pretraining(config, tokenizer), config=config, mesh=make_mesh(**sizes, devices=devices))
    shapes = {
        name: jax.ShapeDtypeStruct((config.batch_size, *value.shape[1:]), value.dtype)
        for name, value in rows(config, tokenizer, 0).items()
    }
    return program.step.lower(program.state, shapes)


def moved(lowered_step):
    """The kinds of collectives that only a move of features between devices would need."""
    text = lowered_step.compile().as_text()
    return [kind for kind in ("all-to-all", "collective-permute") if f" {kind}(" in text or f" {kind}-start(" in text]


@pytest.mark.slow
def test_microbatches_move_nothing_between_devices(tokenizer):
    # Each of the eight devices holds four microbatches of one group.
    fields = {"batch_size": 128, "mesh__fsdp": 2}
    assert not moved(lowered(tokenizer, accumulate=4, **fields))


@pytest.mark.slow
def test_microbatches_and_remat_save_memory(tokenizer):
    def temporaries(**fields):
        larger = {"batch_size": 64, **sizes(width=64, layers=2)}
        step = lowered(tokenizer, devices=jax.devices()[:1], **larger, **fields)
        return step.compile().memory_analysis().temp_size_in_bytes

    plain, dots, full = (temporaries(model__remat=remat) for remat in ("none", "dots", "full"))
    assert full < dots < plain
    assert temporaries(accumulate=4) < 0.5 * plain
