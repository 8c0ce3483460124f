"""What is set before the package is imported, and the run that tests of several directories read.

Shapes in signatures are checked in every test: the hook must be in place before the package is imported.
"""

import os
from pathlib import Path

# Eight devices on one CPU, so that sharded runs are tested where there is no accelerator.
# Compiling is most of what these tiny programs cost; optimising them would not pay.
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Many tests compile the same programs: each is compiled once for all of them and for the processes that they start.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).resolve().parents[1] / ".cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

import jaxtyping
import pytest

jaxtyping.install_import_hook("mvlm_jax", "beartype.beartype").__enter__()


def pytest_collection_modifyitems(items):
    """One worker makes the demo run at once, before the others need it and would wait for it."""
    items.sort(key=lambda item: item.path.name != "test_commands.py")


@pytest.fixture(scope="session")
def demo_dir(tmp_path_factory):
    """A small set of drawn scenes, for all to read."""
    from tiny import once, prepare_shapes

    return once("shapes", prepare_shapes, tmp_path_factory)


@pytest.fixture(scope="session")
def demo_run(demo_dir, tmp_path_factory):
    """A finished run of `DEMO_RUN` over them, for all to read; who evaluates it takes a copy."""
    from tiny import DEMO_RUN, demo_flags, once

    from mvlm_jax.cli import train

    def make(workdir):
        assert train.run(demo_flags(data_dir=demo_dir, workdir=workdir, **DEMO_RUN)) == 0

    return once("demo_run", make, tmp_path_factory)
