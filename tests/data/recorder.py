"""Goes through the batches of a run and appends the ids in each to a file; continues where the file ends."""

import argparse
import json
import time
from pathlib import Path

import psutil
from absl import flags
from examples import CAPTIONS

from mvlm_jax.data.augmentation import Augment
from mvlm_jax.data.background import in_background
from mvlm_jax.data.images import ImageSpec
from mvlm_jax.data.mixtures import open_mixture
from mvlm_jax.data.pipeline import PairBatches, PairExamples
from mvlm_jax.data.text import train_tokenizer


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("data_dir")
    parser.add_argument("ids", type=Path)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--pause", type=float, default=0.0, help="seconds that a step takes")
    arguments = parser.parse_args()
    flags.FLAGS.mark_as_parsed()
    done = arguments.ids.read_text().count("\n") if arguments.ids.exists() else 0
    examples = PairExamples(
        mixture=open_mixture("tfds:shapes:train", data_dir=arguments.data_dir),
        seed=5,
        spec=ImageSpec(size=16, max_pixels=10_000),
        augment=Augment(min_scale=0.2, flip=True, operations=2, magnitude=7),
    )
    tokenizer = train_tokenizer(CAPTIONS, kind="roberta", vocab_size=400)
    steps = PairBatches(examples, tokenizer, max_length=16, batch_size=8, rows=tuple(range(8)))
    batches = in_background(steps, start_step=done, workers=arguments.workers, prefetch=2)
    for step in range(done, arguments.steps):
        batch = next(batches)
        if step == done:
            print(json.dumps([child.pid for child in psutil.Process().children()]), flush=True)
        time.sleep(arguments.pause)
        with arguments.ids.open("a") as file:
            file.write(json.dumps({"step": step, "ids": batch["image_id"].tolist()}) + "\n")
    batches.close()


if __name__ == "__main__":
    main()
