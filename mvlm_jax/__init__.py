"""Masked vision-language pre-training (MaskVLM, ICLR 2023) in JAX and Flax."""

from pathlib import Path
from typing import TYPE_CHECKING

__version__ = "0.1.0"  # the one place; setup.py reads this line, and a test compares CITATION.cff and CHANGELOG.md

if TYPE_CHECKING:
    import jax

    from mvlm_jax.inference import Inference


def load(
    folder: str | Path,
    *,
    batch_size: int = 32,
    device: "jax.Device | str | None" = None,
    dtype: str | None = None,
    compilation_cache: str = "auto",
) -> "Inference":
    """The model that `mvlm weights export` wrote to a folder, ready for images and strings.

    Args:
      folder: or the name that it was pushed to, as "hf:owner/name".
      batch_size: images or texts computed at once.
      device: cpu, gpu or tpu, one of several as in gpu:1, or a device of JAX; by default that of JAX.
      dtype: of the computation: float32, bfloat16, or auto (bfloat16 on accelerators, float32 on CPU); by default that
        of the export's config.
      compilation_cache: where JAX keeps what this process compiles, for the next start: auto (the user's cache
        directory), off, or a directory. What is set through JAX itself stays.

    Raises:
      mvlm_jax.errors.UserError: not such a folder, or one that is damaged.
    """
    # JAX takes seconds to import, which the package's version does not need.
    from mvlm_jax import compilation_cache as cache
    from mvlm_jax import inference

    cache.use(cache.find(compilation_cache))
    return inference.load(folder, batch_size=batch_size, device=device, dtype=dtype)
