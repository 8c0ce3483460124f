import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.sharding import PartitionSpec

from mvlm_jax.errors import UserError
from mvlm_jax.models.activations import ACTIVATIONS, gelu
from mvlm_jax.models.attention import attend, pad_tokens
from mvlm_jax.models.compute import Compute, check_attention, compute_for
from mvlm_jax.models.layers import LayerStack, PreNormBlock
from mvlm_jax.models.norm import LayerNorm

X = [-6.0, -2.5, -0.75, 0.0, 0.3, 1.0, 4.0]


def cdf(x):
    return 0.5 * (1 + math.erf(x / math.sqrt(2)))


def derivative(x):
    return cdf(x) + x * math.exp(-x * x / 2) / math.sqrt(2 * math.pi)


def test_gelu_and_its_derivative_are_exact():
    values, gradient = jax.vmap(jax.value_and_grad(gelu))(jnp.array(X))
    # 1 + erf(x) has float32's absolute precision, not its relative one, where erf(x) is close to -1.
    np.testing.assert_allclose(values, [x * cdf(x) for x in X], rtol=1e-6, atol=4e-7)
    np.testing.assert_allclose(gradient, [derivative(x) for x in X], rtol=1e-6, atol=4e-7)


@pytest.mark.parametrize(
    ("name", "definition"),
    [
        ("quick_gelu", lambda x: x * jax.nn.sigmoid(1.702 * x)),
        ("gelu_tanh", functools.partial(jax.nn.gelu, approximate=True)),
    ],
)
def test_other_activations_and_their_derivatives_follow_their_definition(name, definition):
    received = jax.vmap(jax.value_and_grad(ACTIVATIONS[name]))(jnp.array(X))
    for ours, expected in zip(received, jax.vmap(jax.value_and_grad(definition))(jnp.array(X))):
        np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-6)


def test_layer_scale_multiplies_what_attention_and_mlp_add():
    fields = {"heads": 2, "mlp_ratio": 2, "epsilon": 1e-6, "compute": Compute()}
    x = jax.random.normal(jax.random.key(0), (2, 3, 8))
    scaled, plain = PreNormBlock(**fields, layer_scale=True), PreNormBlock(**fields)
    params = scaled.init(jax.random.key(1), x, None)["params"]
    np.testing.assert_allclose(params["attention_scale"], np.full(8, 1e-5))
    halves = params | {name: jnp.full(8, value) for name, value in (("attention_scale", 0.5), ("mlp_scale", 0.0))}
    without = {name: value for name, value in params.items() if not name.endswith("_scale")}
    without["mlp"] = jax.tree.map(jnp.zeros_like, without["mlp"])
    added = plain.apply({"params": without}, x, None) - x
    np.testing.assert_allclose(scaled.apply({"params": halves}, x, None) - x, 0.5 * added, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_gelu_has_a_gradient_on_each_device_of_a_mesh(dtype):
    devices = jax.device_count()
    mesh = jax.make_mesh((devices,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = PartitionSpec("data")
    x = jnp.arange(devices, dtype=dtype)
    of_all = jax.jit(jax.shard_map(jax.vmap(jax.grad(gelu)), mesh=mesh, in_specs=rows, out_specs=rows))
    np.testing.assert_array_equal(of_all(x), jax.vmap(jax.grad(gelu))(x))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_layer_norm_and_its_gradients_are_those_of_the_library(dtype):
    x = 3 + 2 * jax.random.normal(jax.random.key(0), (2, 3, 16), dtype)
    ours, theirs = LayerNorm(1e-6, dtype), nn.LayerNorm(1e-6, dtype=dtype)
    params = {"scale": jnp.linspace(0.5, 2.0, 16), "bias": jnp.linspace(-1.0, 1.0, 16)}

    def loss(norm, params, x):
        return (jnp.sin(norm.apply({"params": params}, x)) * jnp.arange(16)).astype(jnp.float32).sum()

    expected = jax.value_and_grad(loss, argnums=(1, 2))(theirs, params, x)
    received = jax.value_and_grad(loss, argnums=(1, 2))(ours, params, x)
    tolerance = {"float32": 1e-5, "bfloat16": 3e-2}[dtype]
    for mine, library in zip(jax.tree.leaves(received), jax.tree.leaves(expected)):
        scale = np.abs(np.asarray(library, np.float32)).max()
        np.testing.assert_allclose(
            np.asarray(mine, np.float32), np.asarray(library, np.float32), atol=tolerance * scale, rtol=tolerance
        )
    assert jax.tree.structure(ours.init(jax.random.key(0), x)) == jax.tree.structure(theirs.init(jax.random.key(0), x))


@pytest.mark.parametrize(("tokens", "padded"), [(5, 8), (8, 8), (197, 200), (40, 40)])
def test_padded_tokens_are_seen_by_nobody(tokens, padded):
    x, mask = jnp.ones((2, tokens, 3)), jnp.arange(tokens) < jnp.array([[1], [tokens]])
    longer, longer_mask = pad_tokens(x, mask, kernel="cudnn")
    assert longer.shape == (2, padded, 3) and longer_mask.shape == (2, padded)
    assert longer_mask.sum(axis=1).tolist() == [1, tokens]
    same, no_mask = pad_tokens(x, None, kernel="xla")
    assert same is x and no_mask is None


def stack(*, layers, compute, frozen_layers=0):
    block = functools.partial(PreNormBlock, heads=2, mlp_ratio=2, epsilon=1e-6, compute=compute)
    return LayerStack(block, layers, frozen_layers, compute, name="layers")


def test_a_stack_of_padded_tokens_gives_the_features_of_the_unpadded_ones():
    x = jax.random.normal(jax.random.key(1), (2, 5, 8))

    class Stack(nn.Module):
        @nn.compact
        def __call__(self, x, mask):
            return stack(layers=2, compute=Compute())(x, mask)

    params = Stack().init(jax.random.key(0), x, None)
    plain = Stack().apply(params, x, None)
    padded = Stack().apply(params, *pad_tokens(x, None, kernel="cudnn"))[:, :5]
    np.testing.assert_allclose(padded, plain, atol=1e-6)


@pytest.mark.parametrize("remat", ["none", "inputs", "dots", "full"])
def test_an_unrolled_stack_has_the_values_and_gradients_of_a_scanned_one(remat):
    x = jax.random.normal(jax.random.key(1), (2, 5, 8))

    class Stack(nn.Module):
        compute: Compute

        @nn.compact
        def __call__(self, x):
            return stack(layers=3, compute=self.compute)(x, None)

    def loss(params, layer_loop):
        return jnp.sin(Stack(Compute(layer_loop=layer_loop, remat=remat)).apply(params, x)).sum()

    params = Stack(Compute()).init(jax.random.key(0), x)
    scanned, unrolled = (jax.value_and_grad(loss)(params, layer_loop) for layer_loop in ("scan", "unroll"))
    for one, other in zip(jax.tree.leaves(scanned), jax.tree.leaves(unrolled)):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("layer_loop", ["scan", "unroll"])
@pytest.mark.parametrize("frozen_layers", [1, 2, 3])
def test_frozen_layers_change_no_value_and_have_no_gradient_nor_has_what_is_below(layer_loop, frozen_layers):
    x = jax.random.normal(jax.random.key(1), (2, 5, 8))

    class Stack(nn.Module):
        frozen_layers: int

        @nn.compact
        def __call__(self, x):
            return stack(layers=3, compute=Compute(layer_loop=layer_loop), frozen_layers=self.frozen_layers)(x, None)

    def loss(params, x, frozen_layers):
        return jnp.sin(Stack(frozen_layers).apply(params, x)).sum()

    params = Stack(0).init(jax.random.key(0), x)
    whole, (of_all, _) = jax.value_and_grad(loss, argnums=(0, 1))(params, x, 0)
    part, (of_last, of_x) = jax.value_and_grad(loss, argnums=(0, 1))(params, x, frozen_layers)
    assert float(part) == pytest.approx(float(whole), abs=1e-6)
    assert not of_x.any()
    for one, other in zip(jax.tree.leaves(of_all), jax.tree.leaves(of_last)):
        np.testing.assert_allclose(other[frozen_layers:], one[frozen_layers:], rtol=1e-5, atol=1e-6)
        assert not other[:frozen_layers].any() and one[:frozen_layers].any()


@pytest.mark.parametrize(("queries", "keys"), [(1, 7), (4, 3), (5, 5)])
def test_attention_follows_its_definition_for_any_number_of_tokens(queries, keys):
    q, k, v = (
        jax.random.normal(key, (2, tokens, 3, 4))
        for key, tokens in zip(jax.random.split(jax.random.key(0), 3), (queries, keys, keys))
    )
    mask = np.arange(keys) < np.array([[1], [keys]])
    received = attend(q, k, v, jnp.asarray(mask), kernel="cudnn")  # too few queries for a fused kernel
    scores = np.einsum("brnh,bsnh->bnrs", q, k) / 2
    weights = np.where(mask[:, None, None], np.exp(scores), 0)
    expected = np.einsum("bnrs,bsnh->brnh", weights / weights.sum(axis=-1, keepdims=True), v)
    np.testing.assert_allclose(received, expected, rtol=1e-5, atol=1e-6)


def test_a_fused_kernel_gets_lengths_in_place_of_masks(monkeypatch):
    plain, asked = jax.nn.dot_product_attention, []

    def recorded(*arguments, implementation=None, **options):
        asked.append(implementation)
        return plain(*arguments, **options)

    monkeypatch.setattr(jax.nn, "dot_product_attention", recorded)
    queries, keys = jax.random.split(jax.random.key(0))
    q, k = jax.random.normal(queries, (3, 32, 2, 8)), jax.random.normal(keys, (3, 40, 2, 8))
    mask = jnp.arange(40) < jnp.array([[40], [7], [0]])  # the last text is padding alone
    fused, xla = (attend(q, k, k, mask, kernel=kernel) for kernel in ("cudnn", "xla"))
    assert asked == ["cudnn", None]
    np.testing.assert_allclose(fused[:2], xla[:2], rtol=1e-5, atol=1e-6)
    assert np.isfinite(fused).all()
    odd_width = jax.random.normal(queries, (3, 32, 2, 12))
    attend(odd_width, odd_width, odd_width, None, kernel="cudnn")
    assert asked[-1] is None


def test_automatic_settings_follow_the_platform():
    auto = {"dtype": "auto", "attention": "auto", "layer_loop": "auto", "remat": "auto"}
    assert compute_for(**auto, backend="cpu") == Compute(jnp.dtype("float32"), "xla", "scan", "inputs")
    assert compute_for(**auto, backend="tpu") == Compute(jnp.dtype("bfloat16"), "pallas", "scan", "none")
    assert compute_for(**auto | {"dtype": "float32"}, backend="tpu").attention == "xla"
    assert compute_for(**auto, backend="gpu").layer_loop == "unroll"


def test_a_kernel_for_tpus_is_refused_on_a_gpu():
    with pytest.raises(UserError, match="attention=pallas needs a TPU .* not gpu; leave it at auto"):
        check_attention(Compute(attention="pallas"), platform="gpu")
    check_attention(Compute(attention="pallas"), platform="tpu")


@pytest.mark.parametrize(("platform", "dtype"), [("cpu", "bfloat16"), ("tpu", "bfloat16"), ("gpu", "float32")])
def test_cudnn_where_there_is_none_is_refused(platform, dtype):
    compute = Compute(dtype=jnp.dtype(dtype), attention="cudnn")
    with pytest.raises(UserError, match=f"needs an NVIDIA GPU and bfloat16, not {platform} and {dtype}"):
        check_attention(compute, platform=platform)
