"""How a model is computed: what changes its speed and memory, and its values by rounding only."""

import dataclasses

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from mvlm_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Compute:
    """The fields of a model that hold no parameter."""

    dtype: DTypeLike = jnp.float32
    attention: str = "xla"  # xla: any platform and type; cudnn: flash attention on NVIDIA GPUs, in 16 bits
    layer_loop: str = "scan"  # scan: one layer is compiled; unroll: all of them, which runs faster
    remat: str = "none"  # what the backward pass recomputes: none, dots (all but matrix products), full


def compute_for(*, dtype: str, attention: str, layer_loop: str, remat: str, backend: str | None = None) -> Compute:
    """The settings with every `auto` resolved for a platform.

    Args:
      dtype: `auto` is float32 on CPU, which has no fast bfloat16, and bfloat16 on every accelerator.
      attention: `auto` is cudnn on NVIDIA GPUs of compute capability 8.0 or more in 16 bits, else xla.
      layer_loop: `auto` is unroll on GPUs, else scan.
      backend: JAX's name of the platform; that of the default device where it is not given.
    """
    backend = backend or jax.default_backend()
    if dtype == "auto":
        dtype = "float32" if backend == "cpu" else "bfloat16"
    on_gpu = backend in ("gpu", "cuda")
    if attention == "auto":
        attention = "cudnn" if on_gpu and dtype != "float32" and _has_cudnn() else "xla"
    if layer_loop == "auto":
        layer_loop = "unroll" if on_gpu else "scan"
    return Compute(dtype=jnp.dtype(dtype), attention=attention, layer_loop=layer_loop, remat=remat)


def check_attention(compute: Compute, *, platform: str) -> None:
    """
    Args:
      platform: of the devices that will run it, as JAX names it.

    Raises:
      UserError: they do not have this kernel.
    """
    if compute.attention == "cudnn" and (platform not in ("gpu", "cuda") or compute.dtype == jnp.float32):
        raise UserError(
            f"config.model.attention=cudnn needs an NVIDIA GPU and bfloat16, not {platform} and {compute.dtype}; "
            "leave it at auto"
        )


def _has_cudnn() -> bool:
    """False on AMD GPUs, which JAX calls gpu as well, and on NVIDIA GPUs before Ampere."""
    device = jax.local_devices()[0]
    if "cuda" not in device.client.platform_version:
        return False
    return tuple(map(int, device.compute_capability.split("."))) >= (8, 0)
