"""What the backward pass keeps of a fused attention: the policy knows it by the name of a primitive inside JAX."""

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn
from jax._src.cudnn import fused_attention_stablehlo as fused
from jax.extend.core import Primitive

from mvlm_jax.models.attention import attend
from mvlm_jax.models.layers import rematerialized


def test_jax_still_calls_its_fused_attention_so():
    names = [value.name for value in vars(fused).values() if isinstance(value, Primitive)]
    assert any(name.startswith("dot_product_attention_fwd") for name in names), names


class Block(nn.Module):
    @nn.compact
    def __call__(self, x):
        return jnp.sum(jnp.sin(attend(x, x, x, None, kernel="cudnn")))


@pytest.mark.parametrize("remat, computed", [("none", 1), ("dots", 1), ("full", 2)])
def test_a_fused_attention_is_recomputed_only_where_nothing_is_kept(remat, computed, monkeypatch):
    monkeypatch.setattr(fused, "check_cudnn_version", lambda: 91100)  # traced for a GPU, and run on none

    block = rematerialized(Block, remat=remat)()
    x = jax.ShapeDtypeStruct((2, 32, 2, 64), jnp.bfloat16)
    traced = str(jax.make_jaxpr(jax.grad(lambda x: block.apply({}, x)))(x))
    assert traced.count("dot_product_attention_fwd_wrapper[") == computed
