"""What the backward pass keeps of a fused attention: the policy knows it by the name of a primitive inside JAX."""

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn
from jax._src.cudnn import fused_attention_stablehlo as fused
from jax.extend.core import Primitive

from mvlm_jax.models.attention import attend
from mvlm_jax.models.compute import Compute
from mvlm_jax.models.layers import PostNormBlock, PreNormBlock, rematerialized


def test_jax_still_calls_its_fused_attention_so():
    names = [value.name for value in vars(fused).values() if isinstance(value, Primitive)]
    assert any(name.startswith("dot_product_attention_fwd") for name in names), names


class Block(nn.Module):
    kernel: str

    @nn.compact
    def __call__(self, x):
        return jnp.sum(jnp.sin(attend(x, x, x, None, kernel=self.kernel)))


@pytest.mark.parametrize("remat, computed", [("none", 1), ("inputs", 1), ("dots", 1), ("full", 2)])
@pytest.mark.parametrize("kernel", ["cudnn", "pallas"])
def test_a_fused_attention_is_recomputed_only_where_nothing_is_kept(kernel, remat, computed, monkeypatch):
    monkeypatch.setattr(fused, "check_cudnn_version", lambda: 91100)  # traced for a GPU, and run on none

    block = rematerialized(Block, remat=remat)(kernel)
    x = jax.ShapeDtypeStruct((2, 32, 2, 64), jnp.bfloat16)
    traced = str(jax.make_jaxpr(jax.grad(lambda x: block.apply({}, x)))(x))
    if kernel == "pallas":
        # One branch for TPUs and one for CPUs, and a kernel for the backward pass.
        assert traced.count("pallas_call[") == 2 * (computed + 1)
    else:
        assert traced.count("dot_product_attention_fwd_wrapper[") == computed


@pytest.mark.parametrize("kind", [PreNormBlock, PostNormBlock])
def test_with_the_inputs_of_products_kept_no_product_is_computed_again(kind):
    def products(remat):
        block = kind(heads=2, mlp_ratio=2, epsilon=1e-6, compute=Compute(attention="pallas"))
        params = block.init(jax.random.key(0), jnp.zeros((1, 4, 16)), None)
        apply = lambda params, x: block.apply(params, x, None)
        loss = lambda params, x: jnp.sin(rematerialized(apply, remat=remat, transform=jax.checkpoint)(params, x)).sum()
        traced = str(jax.make_jaxpr(jax.grad(loss, argnums=(0, 1)))(params, jnp.zeros((1, 4, 16))))
        return traced.count("dot_general["), traced.count("erf")

    (plain, plain_erf), (inputs, inputs_erf), (full, _) = map(products, ("none", "inputs", "full"))
    assert inputs == plain < full
    assert inputs_erf > plain_erf
