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
    # xla: any platform and type; cudnn: flash attention on NVIDIA GPUs, in 16 bits; pallas: our kernel for TPUs
    attention: str = "xla"
    layer_loop: str = "scan"  # scan: one layer is compiled; unroll: all of them, which runs faster
    remat: str = "none"  # what the backward pass recomputes: none, inputs, dots, full; see `layers.rematerialized`


def compute_for(*, dtype: str, attention: str, layer_loop: str, remat: str, backend: str | None = None) -> Compute:
    """The settings with every `auto` resolved for a platform.

    Args:
      dtype: `auto` is float32 on CPU, which has no fast bfloat16, and bfloat16 on every accelerator.
      attention: in 16 bits, `auto` is pallas on TPUs and cudnn on NVIDIA GPUs of compute capability 8.0 or more;
        anywhere else it is xla.
      layer_loop: `auto` is unroll on GPUs, else scan.
      remat: `auto` is inputs on CPU, where moving memory takes longer than recomputing what is cheap, else none.
      backend: JAX's name of the platform; that of the default device where it is not given.
    """
    backend = backend or jax.default_backend()
    if dtype == "auto":
        dtype = "float32" if backend == "cpu" else "bfloat16"
    on_gpu = backend in ("gpu", "cuda")
    if attention == "auto":
        attention = "xla"
        if dtype != "float32":
            attention = "pallas" if backend == "tpu" else "cudnn" if on_gpu and _has_cudnn() else "xla"
    if layer_loop == "auto":
        layer_loop = "unroll" if on_gpu else "scan"
    if remat == "auto":
        remat = "inputs" if backend == "cpu" else "none"
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
    if compute.attention == "pallas" and platform not in ("tpu", "cpu"):
        raise UserError(
            f"config.model.attention=pallas needs a TPU (a CPU interprets it, slowly), not {platform}; leave it at auto"
        )


def _has_cudnn() -> bool:
    """False on AMD GPUs, which JAX calls gpu as well, and on NVIDIA GPUs before Ampere."""
    device = jax.local_devices()[0]
    if "cuda" not in device.client.platform_version:
        return False
    return tuple(map(int, device.compute_capability.split("."))) >= (8, 0)
