"""Whether `mvlm prepare --check` finds every fault that is planted in a copy of Flickr8k's dev images, and no other.

The copy is shared out to two splits and an evaluation set. The last line is one JSON object; `missed` and `unplanted`
list (fault, split, id). Status 1 where anything was missed; what was found though it was not planted is for a person to
look at, in DIRECTORY/report/check.html.

Example:
  python benchmarks/doctor.py --source=FLICKR8K --directory=runs/doctor
"""

import argparse
import collections
import contextlib
import io
import itertools
import json
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageEnhance

from mvlm_jax.cli import prepare
from mvlm_jax.data.builders import flickr8k
from mvlm_jax.data.skipped import Skipped
from mvlm_jax.data.text import train_tokenizer

RECIPE = Path(__file__).resolve().parent.parent / "configs" / "flickr8k.py"
MAX_LENGTH = 40  # tokens


class Copy:
    """Images and captions by file name, and which split a file is listed in.

    The first `evaluation` images are held out, the next `dev` ones are the dev split, the others train's.
    """

    def __init__(self, source: Path, *, evaluation: int, dev: int):
        captions = flickr8k.read_captions(source / flickr8k.CAPTIONS, skipped=Skipped())
        names = (source / flickr8k.LISTS["dev"]).read_text().split()
        self.images = {name: (source / flickr8k.IMAGES / name).read_bytes() for name in names}
        self.captions = {name: list(captions[name]) for name in names}
        self._published = {name: (self.images[name], list(captions[name])) for name in names}
        cuts = (0, evaluation, evaluation + dev, None)
        self.splits = {
            split: names[start:stop] for split, start, stop in zip(("held_out", "dev", "train"), cuts, cuts[1:])
        }
        self.planted: list[tuple[str, str, str]] = []
        self._untouched = {split: iter(names[5:]) for split, names in self.splits.items()}

    def plant(self, fault: str, *, split: str = "train") -> str:
        """The name of an image that nothing was done to yet, and that is now said to have a fault."""
        name = self.untouched(split)
        self.planted.append((fault, split, Path(name).stem))
        return name

    def untouched(self, split: str = "train") -> str:
        name = next(self._untouched[split], None)
        if name is None:
            raise SystemExit(f"doctor.py: {split} has too few images for all faults: {len(self.splits[split])}")
        return name

    def unchanged(self) -> int:
        """Images that are, with all their captions, as they were published."""
        return sum(
            (self.images.get(name), self.captions.get(name)) == published for name, published in self._published.items()
        )

    def picture(self, name: str) -> Image.Image:
        return Image.open(io.BytesIO(self.images[name])).convert("RGB")

    def write(self, directory: Path) -> None:
        images = directory / flickr8k.IMAGES
        images.mkdir(parents=True)
        for name, data in self.images.items():
            (images / name).write_bytes(data)
        lines = [f"{name}#{i}\t{text}\n" for name, said in self.captions.items() for i, text in enumerate(said)]
        (directory / flickr8k.CAPTIONS).write_text("".join(lines), encoding="utf-8", newline="")
        for split in ("train", "dev"):
            (directory / flickr8k.LISTS[split]).write_text("\n".join(self.splits[split]) + "\n")
        held_out = [{"image": name, "caption": self.captions[name]} for name in self.splits["held_out"]]
        (images / "held_out.json").write_text(json.dumps(held_out))


def encoded(picture: Image.Image, file_format: str, **options) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, file_format, **options)
    return buffer.getvalue()


def plant_faults(copy: Copy) -> None:
    for _ in range(4):
        del copy.images[copy.plant("missing")]
    for data in (
        b"",
        b"<!DOCTYPE html><title>404 Not Found</title>",
        bytes(range(256)) * 40,
        b"\x89PNG\r\n\x1a\n" + b"x" * 99,
    ):
        copy.images[copy.plant("undecodable")] = data
    for part in (0.3, 0.9):
        name = copy.plant("truncated")
        copy.images[name] = copy.images[name][: int(part * len(copy.images[name]))]
    for part in (0.3, 0.7):
        name = copy.plant("truncated")
        # With an end in the right place, the decoder fills up in silence.
        copy.images[name] = copy.images[name][: int(part * len(copy.images[name]))] + b"\xff\xd9"
    for side in (24, 40, 55):
        name = copy.plant("tiny")
        copy.images[name] = encoded(copy.picture(name).resize((side, side)), "JPEG")
    for file_format in ("GIF", "PNG"):
        name = copy.plant("animated")
        frames = [copy.picture(name).rotate(turn) for turn in (0, 10, 20)]
        copy.images[name] = encoded(frames[0], file_format, save_all=True, append_images=frames[1:])
    for box in ((0, 100, 300, 160), (100, 0, 160, 290)):
        name = copy.plant("extreme_aspect")
        copy.images[name] = encoded(copy.picture(name).crop(box), "JPEG", quality=95)
    for colour, file_format in (("white", "PNG"), ((97, 99, 102), "JPEG"), ("black", "GIF")):
        copy.images[copy.plant("blank")] = encoded(Image.new("RGB", (500, 375), colour), file_format)
    header = encoded(Image.new("L", (1, 1)), "PPM").replace(b"1 1", b"20000 20000")
    copy.images[copy.plant("too_large")] = header

    for _ in range(3):
        original = copy.untouched()
        copy.images[copy.plant("duplicate")] = copy.images[original]
    copies = (
        lambda picture: encoded(picture, "JPEG", quality=20),
        lambda picture: encoded(picture.resize((picture.width // 2, picture.height // 2)), "JPEG"),
        lambda picture: encoded(picture, "PNG"),
        lambda picture: encoded(picture.resize((picture.width * 2, picture.height * 2)), "WEBP", quality=70),
        lambda picture: encoded(ImageEnhance.Brightness(picture).enhance(0.8), "JPEG"),
        lambda picture: encoded(picture.crop((4, 3, picture.width - 4, picture.height - 3)), "JPEG"),
    )
    for change in copies:
        original = copy.picture(copy.untouched())
        copy.images[copy.plant("near_duplicate")] = change(original)
    # Of two splits, the finding is at the later one; dev comes before train.
    for fault, split, change in (
        ("split_overlap", "dev", None),
        ("split_overlap", "dev", None),
        ("split_near_overlap", "dev", copies[0]),
        ("split_near_overlap", "dev", copies[1]),
        ("evaluation_overlap", "held_out", None),
        ("evaluation_near_overlap", "held_out", copies[1]),
        ("evaluation_near_overlap", "held_out", copies[4]),
    ):
        original = copy.untouched(split)
        data = copy.images[original] if change is None else change(copy.picture(original))
        copy.images[copy.plant(fault)] = data

    for said in ([], ["", " "]):
        copy.captions[copy.plant("no_captions")] = said
    for text in ("", "   "):
        copy.captions[copy.plant("empty_caption")][2] = text
    for text in (
        "https://example.org/a/photo?id=7",
        "DSC_00412.JPG",
        "A dog <br> runs &amp; jumps",
        "20120614 - 0017 (2)",
    ):
        copy.captions[copy.plant("not_text")][1] = text
    for text in ("A man drinks in a cafÃ© .", "Two girls\u00e2\u20ac\u2122 dresses"):
        copy.captions[copy.plant("mojibake")][3] = text
    for text in ("A dog\x07 runs", "A girl \u202ein red"):
        copy.captions[copy.plant("control_characters")][0] = text
    for words in (45, 400):
        copy.captions[copy.plant("long_caption")][4] = "the dog and the man and " * (words // 6)
    first = copy.plant("boilerplate")
    for name in (first, *(copy.untouched() for _ in range(11))):
        copy.captions[name][0] = "This image is for illustration only"
    taken, name = copy.untouched(), copy.untouched()
    copy.planted.append(("duplicate_id", "train", Path(taken).stem))
    again = str(Path(taken).with_suffix(".jpeg"))
    copy.images[again], copy.captions[again] = copy.images.pop(name), copy.captions.pop(name)
    copy.splits["train"][copy.splits["train"].index(name)] = again


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, required=True, help="Flickr8k as it was published")
    parser.add_argument("--directory", type=Path, required=True, help="of the copy and the report; must not be there")
    parser.add_argument("--evaluation", type=int, default=100, help="images of the evaluation set")
    parser.add_argument("--dev", type=int, default=200, help="images of the dev split; the others are train's")
    arguments = parser.parse_args(argv)
    copy = Copy(arguments.source, evaluation=arguments.evaluation, dev=arguments.dev)
    plant_faults(copy)
    collection, report = arguments.directory / "flickr8k", arguments.directory / "report"
    copy.write(collection)
    tokenizer = arguments.directory / "tokenizer.json"
    said = flickr8k.read_captions(arguments.source / flickr8k.CAPTIONS, skipped=Skipped())
    train_tokenizer(itertools.chain.from_iterable(said.values()), kind="bert", vocab_size=4000).save(tokenizer)
    started = time.perf_counter()
    with contextlib.redirect_stdout(sys.stderr):
        status = prepare.run(
            [
                "--check",
                "--dataset=flickr8k",
                f"--source={collection}",
                f"--against=held_out=json:{collection / flickr8k.IMAGES / 'held_out.json'}",
                f"--report_dir={report}",
                f"--config={RECIPE}",
                f"--config.text.tokenizer={tokenizer}",
                f"--config.text.max_length={MAX_LENGTH}",
                "--config.image.size=224",
            ]
        )
    seconds = time.perf_counter() - started
    if not (report / "check.json").is_file():
        print(f"doctor.py: mvlm prepare --check ended with status {status}", file=sys.stderr)
        return 1
    content = json.loads((report / "check.json").read_text())
    found = {(finding["fault"], finding["split"], finding["id"]) for finding in content["findings"]}
    planted = set(copy.planted)
    missed, unplanted = sorted(planted - found), sorted(found - planted)
    shutil.rmtree(collection)
    result = {
        "planted": len(planted),
        "faults": len({fault for fault, _, _ in planted}),
        "found": len(planted & found),
        "by_fault": dict(collections.Counter(fault for fault, _, _ in copy.planted)),
        "missed": missed,
        "unplanted": unplanted,
        "unchanged": copy.unchanged(),
        "status": status,
        "seconds": round(seconds, 1),
    }
    print(json.dumps(result))
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(main())
