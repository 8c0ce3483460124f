"""Goes through the batches of a run and appends the ids in each to a file; continues where the file ends."""

import argparse
import json
import time
from pathlib import Path

import psutil
from absl import flags
from examples import CAPTIONS

from mvlm_jax.data.mixtures import open_mixture
from mvlm_jax.data.pipeline import train_batches
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
    batches = train_batches(
        open_mixture("tfds:shapes:train", data_dir=arguments.data_dir),
        train_tokenizer(CAPTIONS, kind="roberta", vocab_size=400),
        image_size=16,
        max_length=16,
        batch_size=8,
        seed=5,
        start_step=done,
        workers=arguments.workers,
        max_image_pixels=10_000,
        min_scale=0.2,
        flip=True,
        operations=2,
        magnitude=7,
    )
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
