"""What the input pipeline costs, stage by stage, and how it compares with bare decoding and with PyTorch's way.

Example:
  python benchmarks/input_pipeline.py --source=tfds:flickr8k:train --data_dir=runs/data

Everything is measured in short rounds, one contender after the other within each, so that whatever else the machine
does meets all alike; a ratio is taken within a round and reported as median (lowest to highest). "Images/s per core"
are images per second of processor time, workers included where there are any. The comparison with PyTorch is left out
where torch is not installed.
"""

import argparse
import functools
import importlib.util
import io
import itertools
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import jax
import numpy as np
import psutil
from absl import flags
from PIL import Image

from mvlm_jax.data.augmentation import Augment, decode_for_crop, drawn_distortions, random_crop, resized_crop
from mvlm_jax.data.background import in_background
from mvlm_jax.data.images import EncodedImage, ImageSpec
from mvlm_jax.data.mixtures import Component, Mixture, open_mixture
from mvlm_jax.data.pipeline import PairBatches, PairExamples
from mvlm_jax.data.text import Tokenizer, train_tokenizer
from mvlm_jax.errors import UserError

PARTS = ("stages", "core", "workers", "memory")
IMAGE_LIMIT = 89_478_485  # pixels
LENGTH = 40  # tokens
AUGMENT = Augment(min_scale=0.2, flip=True, operations=2, magnitude=7)  # config.py's defaults
LOADED = 5_000  # images, at most, that are written out as files for PyTorch


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", default="tfds:flickr8k:train", help="a source or mixture, as config.data.train")
    parser.add_argument("--data_dir", default="", help="where prepared datasets are")
    parser.add_argument("--image_size", type=int, default=224, help="pixels a side")
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--parts", default=",".join(PARTS), help=f"which of {', '.join(PARTS)}")
    parser.add_argument("--output", type=Path, help="a JSON file for all figures")
    arguments = parser.parse_args(argv)
    parts = arguments.parts.split(",")
    unknown = sorted(set(parts) - set(PARTS))
    if unknown:
        parser.error(f"--parts={arguments.parts}: {unknown[0]!r} is not one of {', '.join(PARTS)}")
    if arguments.rounds < 1:
        parser.error(f"--rounds={arguments.rounds} must be at least 1")
    flags.FLAGS.mark_as_parsed()  # what Grain's workers ask for

    if not _torch_is_there():
        print("torch is not installed: PyTorch's way is left out")
    try:
        bench = Bench(arguments)
    except UserError as error:
        print(f"input_pipeline.py: {error}", file=sys.stderr)
        return 1
    results = {part: getattr(bench, part)() for part in parts}
    if arguments.output:
        arguments.output.write_text(json.dumps(results, indent=2) + "\n")
    return 0


class Bench:
    def __init__(self, arguments: argparse.Namespace) -> None:
        self.size, self.rows, self.rounds = arguments.image_size, arguments.batch_size, arguments.rounds
        self.mixture: Mixture = open_mixture(arguments.source, data_dir=arguments.data_dir)
        largest = min(self.mixture.epoch_size, LOADED)
        if self.rows > largest:
            # PyTorch's loader drops the last batch, and would have no other.
            raise SystemExit(f"--batch_size={self.rows} is too large for {arguments.source}; give {largest} or less")
        self.tokenizer = _tokenizer(self.mixture)
        self.batches = self._batches(seed=0)
        self._files: tempfile.TemporaryDirectory | None = None

    def stages(self) -> dict[str, float]:
        """Microseconds of processor time an image in each stage, in one thread."""
        taken: dict[str, list[float]] = {}
        device = jax.devices()[0]
        for number in range(self.rounds):
            rng = random.Random(number)
            places = [_place(self.mixture, number * self.rows + row) for row in range(self.rows)]
            clock = Clock(taken, images=self.rows)
            examples = [component.source[component.record(position)] for component, position in places]
            clock.lap("read")
            encoded = [EncodedImage(example["image"], max_pixels=IMAGE_LIMIT) for example in examples]
            boxes = [random_crop(rng, width=e.width, height=e.height, min_scale=0.2) for e in encoded]
            images = [decode_for_crop(e, box=box, size=self.size) for e, box in zip(encoded, boxes)]
            clock.lap("decode")
            crops = [
                resized_crop(image, box=box, width=e.width, size=self.size)
                for image, box, e in zip(images, boxes, encoded)
            ]
            clock.lap("crop and resize")
            batch = np.empty((self.rows, self.size, self.size, 3), np.uint8)
            for crop, example, place in zip(crops, examples, batch):
                drawn_distortions(rng, caption=example["captions"][0], augment=AUGMENT).applied(crop, out=place)
            clock.lap("augment into the batch")
            text = self.tokenizer.encode([example["captions"][0] for example in examples], max_length=LENGTH)
            clock.lap("tokenize")
            jax.block_until_ready(jax.device_put({"image": batch, "text": text}, device))
            clock.lap("transfer")
        medians = {stage: statistics.median(values) for stage, values in taken.items()}
        print(f"stages, one thread, microseconds an image (transfer to {device.device_kind}):")
        for stage, value in medians.items():
            print(f"  {stage:24s} {value:8.1f}")
        print(f"  {'all':24s} {sum(medians.values()):8.1f}")
        return medians

    def core(self) -> dict[str, list[float]]:
        """Images a second of processor time, one thread, no worker process; a list of all rounds each."""
        contenders = {
            "this pipeline": lambda number: self.batches[number],
            "bare decode + crop + resize, Pillow": self._bare(_bare_pillow),
            "bare decode + crop + resize, the same libraries": self._bare(_bare_own),
        }
        if _torch_is_there():
            contenders["PyTorch DataLoader + Pillow, num_workers=0"] = self._torch()
        rates: dict[str, list[float]] = {name: [] for name in contenders}
        for number in range(-1, self.rounds):
            for name, run in contenders.items():
                start = time.process_time()
                for part in range(3):
                    run(3 * (number + 1) + part)
                if number >= 0:  # the first round warms up
                    rates[name].append(3 * self.rows / (time.process_time() - start))
        _report("one thread, images/s per core", rates)
        return rates

    def workers(self) -> dict[str, dict[str, list[float]]]:
        """Images a second once workers are under way, by the clock and by processor time; a list of all rounds each.

        By processor time: what the workers would deliver with a core for each of them, from the time that all of them
        spent on an image. On a machine with other work only this says how the pipeline scales.
        """
        contenders: dict[str, tuple[int, Callable[[int], Iterator]]] = {
            "this pipeline, 2 workers": (2, lambda seed: self._iterator(workers=2, seed=seed)),
            "this pipeline, 1 worker": (1, lambda seed: self._iterator(workers=1, seed=seed)),
        }
        if _torch_is_there():
            for workers in (2, 1):
                name = f"PyTorch DataLoader + Pillow, num_workers={workers}"
                contenders[name] = workers, functools.partial(self._loader, workers)
        by_clock: dict[str, list[float]] = {name: [] for name in contenders}
        by_processor: dict[str, list[float]] = {name: [] for name in contenders}
        of_this_process: dict[str, list[float]] = {name: [] for name in contenders}
        for number in range(max(1, self.rounds // 3)):
            for name, (workers, start_iterator) in contenders.items():
                iterator = start_iterator(number)
                for _ in range(6):  # past what was made ahead while the first was awaited
                    next(iterator)
                start, spent, own, count = time.perf_counter(), _of_children(), time.process_time(), 24
                for _ in range(count):
                    next(iterator)
                images = count * self.rows
                by_clock[name].append(images / (time.perf_counter() - start))
                by_processor[name].append(workers * images / (_of_children() - spent))
                of_this_process[name].append(images / (time.process_time() - own))
                getattr(iterator, "close", getattr(iterator, "_shutdown_workers", lambda: None))()
                del iterator
        _report("worker processes, images/s by the clock", by_clock)
        _report("worker processes, images/s by processor time of the workers", by_processor)
        _report("worker processes, images/s by processor time of the process that they serve", of_this_process)
        return {"clock": by_clock, "processor": by_processor, "served": of_this_process}

    def memory(self) -> dict[str, list[float]]:
        """Resident MiB of all processes, the largest of each of three epochs, for 0 and 2 workers."""
        peaks: dict[str, list[float]] = {}
        for workers in (0, 2):
            iterator, sizes = self._iterator(workers=workers, seed=0), []
            per_epoch = -(-self.mixture.epoch_size // self.rows)
            for _ in range(3):
                peak = 0.0
                for step, _batch in enumerate(itertools.islice(iterator, per_epoch)):
                    if step % 8 == 0 or step == per_epoch - 1:
                        peak = max(peak, _resident())
                sizes.append(peak)
            iterator.close()
            peaks[f"{workers} workers"] = sizes
            shown = ", ".join(f"{size:.0f}" for size in sizes)
            print(f"memory with {workers} workers, MiB at most in epoch 1, 2, 3: {shown} "
                  f"(growth {100 * (sizes[-1] / sizes[0] - 1):+.1f}%)")  # fmt: skip
        return peaks

    def _iterator(self, *, workers: int, seed: int) -> Iterator:
        return in_background(self._batches(seed=seed), start_step=0, workers=workers, prefetch=2)

    def _batches(self, *, seed: int) -> PairBatches:
        spec = ImageSpec(size=self.size, max_pixels=IMAGE_LIMIT)
        examples = PairExamples(mixture=self.mixture, seed=seed, spec=spec, augment=AUGMENT)
        rows = tuple(range(self.rows))
        return PairBatches(examples, self.tokenizer, max_length=LENGTH, batch_size=self.rows, rows=rows)

    def _bare(self, make: Callable[[bytes, random.Random, int], object]) -> Callable[[int], None]:
        rng = random.Random(0)
        places = [_place(self.mixture, index) for index in range(min(self.mixture.epoch_size, 1024))]
        data = [component.source[component.record(position)]["image"] for component, position in places]

        def run(number: int) -> None:
            for row in range(self.rows):
                make(data[(number * self.rows + row) % len(data)], rng, self.size)

        return run

    def _torch(self) -> Callable[[int], None]:
        endless = itertools.chain.from_iterable(self._loader(0, seed) for seed in itertools.count())
        return lambda number: next(endless)

    def _loader(self, workers: int, seed: int) -> Iterator:
        from torch_pipeline import Pairs, batches

        if self._files is None:
            self._files = tempfile.TemporaryDirectory()
            self._pairs = _write_files(self.mixture, Path(self._files.name))
        options = {name: getattr(AUGMENT, name) for name in ("min_scale", "operations", "magnitude")}
        dataset = Pairs(self._pairs, self.tokenizer, size=self.size, max_length=LENGTH, **options)
        return batches(dataset, batch_size=self.rows, workers=workers, seed=seed)


class Clock:
    """Adds the processor time of each stage to lists, in microseconds an image."""

    def __init__(self, taken: dict[str, list[float]], *, images: int) -> None:
        self._taken, self._images, self._last = taken, images, time.process_time()

    def lap(self, stage: str) -> None:
        now = time.process_time()
        self._taken.setdefault(stage, []).append(1e6 * (now - self._last) / self._images)
        self._last = time.process_time()


def _bare_pillow(data: bytes, rng: random.Random, size: int) -> np.ndarray:
    image = Image.open(io.BytesIO(data)).convert("RGB")
    box = random_crop(rng, width=image.width, height=image.height, min_scale=AUGMENT.min_scale)
    box = (box[0], box[1], min(box[2], image.width), min(box[3], image.height))
    return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC, box=box))


def _bare_own(data: bytes, rng: random.Random, size: int) -> np.ndarray:
    encoded = EncodedImage(data, max_pixels=IMAGE_LIMIT)
    box = random_crop(rng, width=encoded.width, height=encoded.height, min_scale=AUGMENT.min_scale)
    return resized_crop(decode_for_crop(encoded, box=box, size=size), box=box, width=encoded.width, size=size)


def _report(title: str, rates: dict[str, list[float]]) -> None:
    print(f"{title}:")
    ours = next(iter(rates.values()))
    for name, values in rates.items():
        ratios = [mine / other for mine, other in zip(ours, values)]
        print(f"  {name:50s} {statistics.median(values):7.0f}   the first is {statistics.median(ratios):.2f} x that "
              f"({min(ratios):.2f} to {max(ratios):.2f})")  # fmt: skip


def _tokenizer(mixture: Mixture) -> Tokenizer:
    return train_tokenizer(itertools.islice(mixture.captions(), 10_000), kind="roberta", vocab_size=8_000)


def _place(mixture: Mixture, index: int) -> tuple[Component, int]:
    number, position = mixture.locate(index, seed=0)
    return mixture.components[number], position


def _write_files(mixture: Mixture, directory: Path) -> list[tuple[Path, list[str]]]:
    pairs = []
    for index in range(min(mixture.epoch_size, LOADED)):
        component, position = _place(mixture, index)
        example = component.source[component.record(position)]
        path = directory / f"{index}.jpg"
        path.write_bytes(example["image"])
        pairs.append((path, example["captions"]))
    return pairs


def _of_children() -> float:
    """Seconds of processor time that the running children have spent."""
    times = [child.cpu_times() for child in psutil.Process().children()]
    return sum(spent.user + spent.system for spent in times)


def _resident() -> float:
    process = psutil.Process()
    sizes = [process.memory_info().rss]
    for child in process.children(recursive=True):
        try:
            sizes.append(child.memory_info().rss)
        except psutil.NoSuchProcess:
            pass
    return sum(sizes) / 2**20


def _torch_is_there() -> bool:
    return importlib.util.find_spec("torch") is not None


if __name__ == "__main__":
    sys.exit(main())
