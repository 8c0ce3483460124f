"""What is dropped: as much as is asked, of each example by itself, and only in training."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from tiny import tiny_model

from mvlm_jax.models.compute import Compute
from mvlm_jax.models.cross_encoder import CrossEncoder
from mvlm_jax.models.dropout import LayerDropout, Rates, copies, drop, example_keys, fold
from mvlm_jax.models.layers import CrossBlock, LayerStack, PreNormBlock

KEYS = example_keys(jax.random.key(3), 64)
PARTS = ("image_encoder", "text_encoder", "cross")
DROPPING = {f"{part}__{name}": 0.2 for part in PARTS for name in ("dropout", "stochastic_depth")}


def test_a_tenth_of_the_features_is_dropped_and_the_rest_makes_up_for_it():
    x = jnp.ones((64, 100, 100))
    dropped = np.asarray(drop(x, LayerDropout(KEYS, 0.1, None), "mlp"))
    # 640,000 draws: the standard deviation of their part is sqrt(0.1 * 0.9 / 640,000) = 0.0004.
    assert np.mean(dropped == 0) == pytest.approx(0.1, abs=0.0016)
    np.testing.assert_allclose(dropped[dropped != 0], 1 / 0.9, rtol=2e-5)
    assert dropped.mean() == pytest.approx(1, abs=0.002)


def test_the_mean_is_kept_in_16_bits():
    dropped = drop(jnp.ones((64, 100, 100), jnp.bfloat16), LayerDropout(KEYS, 0.3, None), "mlp")
    assert dropped.dtype == jnp.bfloat16
    assert float(dropped.astype(jnp.float32).mean()) == pytest.approx(1, abs=0.004)


def test_a_branch_is_skipped_by_whole_examples():
    keys = example_keys(jax.random.key(0), 4000)
    dropped = np.asarray(drop(jnp.ones((4000, 2, 3)), LayerDropout(keys, 0.0, 0.25), "mlp")).reshape(4000, 6)
    assert set(dropped.sum(axis=1)) == {0, 8}  # 6 / 0.75
    # The standard deviation is sqrt(0.25 * 0.75 / 4000) = 0.0068.
    assert np.mean(dropped[:, 0] == 0) == pytest.approx(0.25, abs=0.028)


def test_both_together_keep_the_mean():
    keys = example_keys(jax.random.key(0), 4000)
    dropped = np.asarray(drop(jnp.ones((4000, 100)), LayerDropout(keys, 0.2, 0.5), "mlp"))
    np.testing.assert_allclose(dropped[dropped != 0], 1 / (0.8 * 0.5), rtol=1e-4)
    assert dropped.mean() == pytest.approx(1, abs=0.07)


def test_what_an_example_drops_depends_on_neither_its_neighbours_nor_padding():
    some, dropout = jnp.array([5, 0, 63]), functools.partial(LayerDropout, rate=0.5, skip=0.5)
    x = jax.random.normal(jax.random.key(0), (64, 7, 9))
    of_all = drop(x, dropout(KEYS), "mlp")
    np.testing.assert_array_equal(drop(x[some], dropout(KEYS[some]), "mlp"), of_all[some])
    padded = jnp.pad(x, ((0, 0), (0, 1), (0, 0)))
    np.testing.assert_array_equal(drop(padded, dropout(KEYS), "mlp")[:, :7], of_all)
    # As rows of one matrix they are the same examples.
    np.testing.assert_array_equal(drop(x.reshape(-1, 9), dropout(KEYS), "mlp"), of_all.reshape(-1, 9))


def test_every_use_drops_other_features():
    x = jnp.ones((64, 50))
    uses = [
        (KEYS, "mlp"), (KEYS, "attention"), (fold(KEYS, "matching"), "mlp"),
        (copies(KEYS, 2)[::2], "mlp"), (copies(KEYS, 2)[1::2], "mlp"),
    ]  # fmt: skip
    masks = [np.asarray(drop(x, LayerDropout(keys, 0.5, None), branch)) for keys, branch in uses]
    for place, one in enumerate(masks):
        assert all(abs(np.mean(one == other) - 0.5) < 0.06 for other in masks[:place])
    assert len(np.unique(masks[0], axis=0)) == 64


def test_the_first_copy_is_the_same_however_many_there_are():
    first = [jax.random.key_data(copies(KEYS, count)[::count]) for count in (1, 2, 3)]
    np.testing.assert_array_equal(first[0], first[1])
    np.testing.assert_array_equal(first[0], first[2])


def test_stochastic_depth_rises_from_zero_with_the_layers():
    rates = Rates(dropout=0.0, stochastic_depth=0.3)
    assert [rates.of_layer(KEYS, index, layers=4).skip for index in range(4)] == pytest.approx([0, 0.1, 0.2, 0.3])
    assert rates.of_layer(KEYS, 0, layers=1).skip is None
    assert rates.of_layer(None, 3, layers=4) is None
    assert Rates().of_layer(KEYS, 3, layers=4) is None


class Stack(nn.Module):
    compute: Compute = Compute()
    frozen_layers: int = 0
    rates: Rates = Rates(0.3, 0.5)

    @nn.compact
    def __call__(self, x, keys=None):
        block = functools.partial(PreNormBlock, heads=2, mlp_ratio=2, epsilon=1e-6, compute=self.compute)
        return LayerStack(block, 3, self.frozen_layers, self.compute, self.rates, name="layers")(
            x, None, dropout_keys=keys
        )


@pytest.fixture(scope="module")
def x():
    return jax.random.normal(jax.random.key(1), (4, 5, 8))


@pytest.fixture(scope="module")
def params(x):
    return Stack().init(jax.random.key(0), x)


@pytest.mark.parametrize(("layer_loop", "remat"), [("unroll", "none"), ("scan", "dots"), ("unroll", "full")])
def test_a_stack_drops_the_same_however_it_is_run(x, params, layer_loop, remat):
    def loss(params, compute):
        return jnp.sin(Stack(compute).apply(params, x, KEYS[:4])).sum()

    expected = jax.value_and_grad(loss)(params, Compute())
    received = jax.value_and_grad(loss)(params, Compute(layer_loop=layer_loop, remat=remat))
    for one, other in zip(jax.tree.leaves(received), jax.tree.leaves(expected)):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_frozen_layers_drop_nothing(x, params):
    whole = Stack().apply(params, x)
    np.testing.assert_allclose(Stack(frozen_layers=3).apply(params, x, KEYS[:4]), whole, atol=1e-6)
    assert np.abs(Stack(frozen_layers=2).apply(params, x, KEYS[:4]) - whole).max() > 0.1


def test_layers_of_one_stack_drop_apart(x, params):
    """With the same parameters in every layer, and what a layer adds to its input taken alone."""
    same = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf[:1], leaf.shape), params)
    dropped = []

    def record(x, dropout, branch):
        out = drop(x, dropout, branch)
        dropped.append((branch, np.asarray(out == 0)))
        return out

    with pytest.MonkeyPatch.context() as patch, jax.disable_jit():
        patch.setattr("mvlm_jax.models.layers.drop", record)
        Stack(rates=Rates(0.5, 0.0)).apply(same, x, KEYS[:4])
    assert [branch for branch, _ in dropped] == ["attention", "mlp"] * 3
    for place, (_, one) in enumerate(dropped):
        assert all(0.3 < np.mean(one == other) < 0.7 for _, other in dropped[:place])


@pytest.mark.slow
@pytest.mark.parametrize("rows", [slice(0, 1), jnp.array([[3, 1], [0, 4], [2, 2], [1, 0]])])
def test_a_block_that_computes_some_rows_drops_of_those(x, rows):
    block = CrossBlock(heads=2, mlp_ratio=2, epsilon=1e-6, compute=Compute())
    variables = block.init(jax.random.key(2), x, None, x, None)
    dropout = LayerDropout(KEYS[:4], 0.5, 0.5)
    whole = block.apply(variables, x, None, x, None, rows, dropout)
    part = block.apply(variables, x[2:], None, x[2:], None, rows if isinstance(rows, slice) else rows[2:],
                       LayerDropout(KEYS[2:4], 0.5, 0.5))  # fmt: skip
    np.testing.assert_allclose(part, whole[2:], atol=1e-6)
    assert np.abs(whole - block.apply(variables, x, None, x, None, rows)).max() > 0.1


def model_of(**rates):
    sizes = {"image_encoder__layers": 1, "text_encoder__layers": 1, "text_encoder__vocab_size": 40}
    return tiny_model(pad_id=0, **sizes, **rates)


IMAGE = jax.random.randint(jax.random.key(0), (3, 32, 32, 3), 0, 256).astype(jnp.uint8)
TEXT = jnp.array([[1, 5, 6, 2], [1, 7, 2, 0], [1, 8, 9, 2]])


@pytest.fixture(scope="module")
def variables():
    return jax.jit(model_of().init)(jax.random.key(0), IMAGE, TEXT)


def outputs(model, variables, keys):
    bound = model.bind(variables)
    views = bound.encode_image(bound.patches(IMAGE), jnp.zeros((3, 2, 16), bool), keys)
    v, w = bound.encode_whole_image(IMAGE, keys), bound.encode_text(TEXT, keys)
    inputs = v, w, bound.text_mask(TEXT)
    fused_v, fused_w = bound.fuse_both(*inputs, None, keys)
    decoded = bound.decode_image(v, w, inputs[2], jnp.array([[0, 3]] * 3), keys)
    match = bound.match_features(*inputs, keys)
    return {"views": views, "v": v, "w": w, "fused_v": fused_v, "fused_w": fused_w, "decoded": decoded, "match": match}


def test_evaluation_and_inference_compute_what_a_model_without_dropout_computes(variables):
    """They give no keys; then the program is the same one."""
    dropping, plain = (
        re.sub(" at 0x[0-9a-f]+", "", str(jax.make_jaxpr(outputs, static_argnums=0)(model, variables, None)))
        for model in (model_of(**DROPPING), model_of())
    )
    assert dropping == plain and "random_bits" not in plain


def test_every_part_of_a_model_drops_in_training(variables):
    run = jax.jit(outputs, static_argnums=0)
    trained, expected = (run(model_of(**DROPPING), variables, keys) for keys in (KEYS[:3], None))
    for name, value in expected.items():
        assert np.abs(trained[name] - value).max() > 1e-3, name
    # The views of an image drop apart, and the first as the whole image by itself.
    np.testing.assert_allclose(trained["views"][:, 0], trained["v"], atol=1e-5)
    assert np.abs(trained["views"][:, 0] - trained["views"][:, 1]).max() > 1e-2


@pytest.mark.slow
@pytest.mark.parametrize("remat", ["dots", "full"])
def test_cross_blocks_drop_the_same_where_the_backward_pass_computes_them_again(x, remat):
    def encoder(remat):
        sizes = {"layers": 2, "heads": 2, "mlp_ratio": 2, "rates": Rates(0.3, 0.5)}
        return CrossEncoder(**sizes, compute=Compute(remat=remat))

    params = encoder("none").init(jax.random.key(0), x, None, x, None)

    def value_and_gradient(remat, keys=KEYS[:4]):
        def loss(params, x):
            return jnp.sin(encoder(remat).apply(params, x, None, jnp.cos(x), None, slice(0, 2), keys)).sum()

        return jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(params, x)

    expected, kept = value_and_gradient("none"), value_and_gradient("none", None)
    assert abs(float(expected[0] - kept[0])) > 0.1
    for one, other in zip(jax.tree.leaves(value_and_gradient(remat)), jax.tree.leaves(expected)):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)
