"""What opening a prepared split of a million tiny records costs, and whether batches from it come any slower.

Example:
  python benchmarks/index.py --data_dir=runs/index

Writes splits of `--small` and of `--records` records first, where they are not there yet. Each figure is of a process
of its own; the last line printed is one JSON object. Status 1 where a process failed.
"""

import argparse
import io
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

BATCH = 64


class Tiny:
    """Records that are alike but for their id."""

    def __init__(self, count: int) -> None:
        self._count, encoded = count, io.BytesIO()
        Image.new("RGB", (8, 8), (200, 30, 30)).save(encoded, "PNG")
        self._image = encoded.getvalue()

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int):
        return {"image": self._image, "captions": ["a red square"], "image_id": self.example_id(index)}

    def example_id(self, index: int) -> str:
        return f"tiny-{index:09d}"


def write(data_dir: Path, count: int, *, workers: int) -> str:
    from mvlm_jax.data.collection import Collection
    from mvlm_jax.data.writing.dataset import write_dataset

    name = f"tiny{count}"
    collection = Collection(splits={"train": Tiny(count)}, source=f"{count} alike")
    write_dataset(collection, name=name, data_dir=data_dir, workers=workers)
    return name


def measure(name: str, data_dir: str, *, batches: int, warmup: int) -> dict[str, float]:
    """Seconds and MB of opening, and milliseconds a batch, in this process."""
    import psutil

    from mvlm_jax.data.sources import open_source

    process = psutil.Process()
    before, started = process.memory_info().rss, time.perf_counter()
    source = open_source(f"tfds:{name}:train", data_dir=data_dir)
    length = len(source)
    source[length - 1]
    opened = time.perf_counter() - started
    opened_rss = process.memory_info().rss
    order = np.random.default_rng(0).permutation(length)[: BATCH * batches].reshape(-1, BATCH)
    for index in order[:warmup].flat:
        source[index]
    latencies = []
    for batch in order[warmup:]:
        at = time.perf_counter()
        for index in batch:
            source[index]
        latencies.append(time.perf_counter() - at)
    read_rss = process.memory_info().rss
    trained = training_batch_ms(source, batches=batches, warmup=warmup)
    at = time.perf_counter()
    for index in order.flat:
        source.example_id(index)
    return {
        "records": length,
        "open_seconds": round(opened, 3),
        "open_mb": round((opened_rss - before) / 1e6, 1),
        "all_files_read_mb": round((read_rss - before) / 1e6, 1),
        "process_mb": round(read_rss / 1e6, 1),
        "read_batch_ms": round(1e3 * float(np.median(latencies)), 3),
        "training_batch_ms": round(trained, 3),
        "id_us": round(1e6 * (time.perf_counter() - at) / order.size, 2),
    }


def training_batch_ms(source, *, batches: int, warmup: int) -> float:
    """Milliseconds a batch of decoded, augmented and tokenized records."""
    from absl import flags

    from mvlm_jax.data.augmentation import Augment
    from mvlm_jax.data.background import in_background
    from mvlm_jax.data.images import ImageSpec
    from mvlm_jax.data.mixtures import Component, Mixture
    from mvlm_jax.data.pipeline import PairBatches, PairExamples
    from mvlm_jax.data.text import train_tokenizer

    flags.FLAGS.mark_as_parsed()
    examples = PairExamples(
        mixture=Mixture([Component(source)]),
        seed=0,
        spec=ImageSpec(size=64, max_pixels=10_000),
        augment=Augment(min_scale=0.2, flip=True, operations=2, magnitude=7),
    )
    tokenizer = train_tokenizer(["a red square"], kind="bert", vocab_size=100)
    steps = PairBatches(examples, tokenizer, max_length=8, batch_size=BATCH, rows=tuple(range(BATCH)))
    iterator = in_background(steps, start_step=0, workers=0, prefetch=2)
    for _ in range(warmup):
        next(iterator)
    started = time.perf_counter()
    for _ in range(batches - warmup):
        next(iterator)
    seconds = time.perf_counter() - started
    iterator.close()
    return 1e3 * seconds / (batches - warmup)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", default="runs/index")
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--small", type=int, default=10_000, help="records of the split to compare with")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--batches", type=int, default=150, help=f"of {BATCH} records, in each process")
    parser.add_argument("--warmup", type=int, default=20, help="of these, before the clock starts")
    parser.add_argument("--rounds", type=int, default=5, help="processes for each split")
    parser.add_argument("--measure", default="", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    least = BATCH * arguments.batches
    if not 0 <= arguments.warmup < arguments.batches or not least <= arguments.small < arguments.records:
        parser.error(
            f"--small must be at least {least} (the batches), --records more, and --warmup less than --batches"
        )
    sizes = {"batches": arguments.batches, "warmup": arguments.warmup}
    if arguments.measure:
        print(json.dumps(measure(arguments.measure, arguments.data_dir, **sizes)))
        return 0
    figures = {}
    for count in (arguments.small, arguments.records):
        started = time.perf_counter()
        name = write(Path(arguments.data_dir), count, workers=arguments.workers)
        print(f"{name} is there after {time.perf_counter() - started:.0f} s", file=sys.stderr)
        figures[name] = []
    # In turn, so that a busy moment of the machine does not fall on one of the two alone.
    given = [f"--{name}={getattr(arguments, name)}" for name in ("data_dir", "small", "records", *sizes)]
    for name in [*figures] * arguments.rounds:
        process = subprocess.run([sys.executable, __file__, f"--measure={name}", *given], stdout=subprocess.PIPE)
        if process.returncode:
            print(f"index.py: the process for {name} ended with status {process.returncode}", file=sys.stderr)
            return 1
        figures[name].append(json.loads(process.stdout))
    # The least of a few processes: what the machine does besides only ever adds.
    small, large = ({field: min(run[field] for run in runs) for field in runs[0]} for runs in figures.values())
    ratios = {field: round(large[field] / small[field], 3) for field in ("read_batch_ms", "training_batch_ms")}
    print(json.dumps({"small": small, "large": large, "ratios": ratios}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
