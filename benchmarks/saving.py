"""How long saving a step keeps training waiting, with small arrays whole and with every array divided among replicas.

A state of the sizes of the recipe `demo` is replicated over devices of one CPU, or over those that are there. Both ways
take turns. A step is written in the background while training goes on; that part is timed too.

Example:
  python benchmarks/saving.py --devices=8 --rounds=5
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from unittest import mock

import numpy as np


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", type=int, default=8, help="of a CPU; a run on an accelerator has all of its own")
    parser.add_argument("--rounds", type=int, default=5, help="after the first, which compiles")
    parser.add_argument("--width", type=int, help="of encoders and cross encoders, if not the recipe's")
    arguments = parser.parse_args(argv)
    # JAX reads it when it makes its devices.
    os.environ.setdefault("XLA_FLAGS", f"--xla_force_host_platform_device_count={arguments.devices}")
    with tempfile.TemporaryDirectory() as directory:
        seconds = measure(Path(directory), rounds=arguments.rounds, width=arguments.width)
    print("way                  first, s  later, s  written after, s")
    medians = {}
    for way, rows in seconds.items():
        (first, _), *later = rows
        medians[way] = statistics.median(save for save, _ in later)
        written = statistics.median(whole for _, whole in later)
        print(f"{way:20} {first:9.2f} {medians[way]:9.3f} {written:17.2f}")
    whole, divided = medians.values()
    print(f"small arrays whole takes {whole / divided:.2f} times as long")
    return 0


def measure(directory: Path, *, rounds: int, width: int | None) -> dict[str, list[tuple[float, float]]]:
    """By way, for each round: seconds until training could go on, and until the step was written."""
    import jax

    from mvlm_jax.aot.ahead import describe_step
    from mvlm_jax.configs import demo
    from mvlm_jax.training import checkpoints as saving

    config = demo.get_config()
    config.mesh.data = len(jax.devices())
    if width is not None:
        for part in (config.image_encoder, config.text_encoder, config.cross):
            part.width = width

    def zeros(leaf):
        return jax.device_put(np.zeros(leaf.shape, leaf.dtype), leaf.sharding)

    shapes = describe_step(config, jax.devices()).program.state
    ways = {"small arrays whole": saving.MIN_BYTES_OF_A_REPLICA, "every array divided": 0}
    seconds: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
    for step in range(1, rounds + 2):
        for way, least in ways.items():
            with mock.patch.object(saving, "MIN_BYTES_OF_A_REPLICA", least):
                opened = saving.Checkpoints(directory / way, keep_last=1, keep_every=0)
            # As after a step of training, whose arrays no copy on the host has been made of.
            state = jax.block_until_ready(jax.tree.map(zeros, shapes))
            with opened as checkpoints:
                began = time.perf_counter()
                checkpoints.save(step, state)
                saved = time.perf_counter() - began
            seconds[way].append((saved, time.perf_counter() - began))
    return seconds


if __name__ == "__main__":
    sys.exit(main())
