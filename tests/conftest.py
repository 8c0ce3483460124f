"""Shapes in signatures are checked in every test: the hook must be in place before the package is imported."""

import os
from pathlib import Path

CACHE = Path(__file__).parents[1] / ".cache" / "jax"

# Eight devices on one CPU, so that sharded runs are tested where there is no accelerator.
# Compiling is most of what these tiny programs cost; optimising them would not pay.
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

# Every test that trains compiles much the same programs: each is compiled once for all tests and the processes they start.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

import jaxtyping

jaxtyping.install_import_hook("mvlm_jax", "beartype.beartype").__enter__()
