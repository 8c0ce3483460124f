"""A small collection of drawn images in which every fault is planted once or more, as a user checks it."""

import json
import re
from html import escape
from pathlib import Path

import numpy as np
import pytest
from examples import ListSource, encoded, pair_source, picture
from html_page import problems
from PIL import Image, ImageEnhance

from mvlm_jax.cli import prepare as prepare_command
from mvlm_jax.data.builders import shapes
from mvlm_jax.data.collection import Collection
from mvlm_jax.data.text import train_tokenizer
from mvlm_jax.data.writing.dataset import write_dataset
from mvlm_jax.doctor.check import Limits, check_collection, tokenizer_for
from mvlm_jax.doctor.faults import FAULTS, parse_policy
from mvlm_jax.errors import UserError

LIMITS = Limits(max_pixels=1_000_000, image_size=224, max_length=12)


def photo(seed: int, **size) -> Image.Image:
    return picture(**({"width": 200, "height": 150} | size), seed=seed)


class Planting:
    """Splits of a collection on disk, and the findings that a check of it should give."""

    def __init__(self, directory: Path):
        self.directory, self.seed = directory, 0
        self.lists = {"dev": [], "train": [], "held_out": []}
        self.expected = []

    def add(self, fault="", *, split="train", image=None, captions=("two dogs run",), identity=None) -> str:
        """The id of a new example; `image` is encoded bytes, None for a good one, an empty string for a missing one."""
        self.seed += 1
        name = f"{split}-{self.seed}" if identity is None else identity
        file = f"{self.seed}.img"
        if image != "":
            (self.directory / file).write_bytes(self.good(self.seed) if image is None else image)
        # A number in every caption, or all of them would be one piece of boilerplate.
        said = [f"{text} {self.seed}" if text == "two dogs run" else text for text in captions]
        self.lists[split].append({"image": file, "caption": said, "image_id": name})
        if fault:
            self.expected.append((fault, split, name))
        return name

    def good(self, seed: int) -> bytes:
        return encoded(photo(seed), "JPEG", quality=95)

    def last(self) -> bytes:
        return (self.directory / f"{self.seed}.img").read_bytes()

    def write(self) -> None:
        unread = {"image": None, "caption": "two dogs run"}
        for split, entries in self.lists.items():
            content = [*entries, unread] if split == "train" else entries
            (self.directory / f"{split}.json").write_text(json.dumps(content))


def plant_every_fault(planting: Planting) -> None:
    add, good = planting.add, planting.good
    for split in planting.lists:
        for _ in range(3):
            add(split=split)
    add("missing", image="")
    for data in (b"", b"<html>", b"\x89PNG\r\n\x1a\n" + b"x" * 99):
        add("undecodable", image=data)
    add("truncated", image=good(1000)[:3000])
    add("truncated", image=good(1001)[:3000] + b"\xff\xd9")
    add("too_large", image=encoded(Image.new("1", (1001, 1000)), "PNG"))
    add("tiny", image=encoded(photo(1002, width=200, height=55)))
    add("extreme_aspect", image=encoded(photo(1003, width=500, height=120)))
    add("blank", image=encoded(Image.new("RGB", (300, 200), "white")))
    for number, file_format in enumerate(("GIF", "PNG", "WEBP")):
        first, *others = (photo(1010 + 3 * number + frame) for frame in range(3))
        add("animated", image=encoded(first, file_format, save_all=True, append_images=others))

    add()
    add("duplicate", image=planting.last())
    for change in (
        lambda image: encoded(image, "JPEG", quality=15),
        lambda image: encoded(image.resize((100, 75)), "PNG"),
        lambda image: encoded(ImageEnhance.Contrast(image).enhance(0.7), "WEBP"),
    ):
        add()
        add("near_duplicate", image=change(photo(planting.seed)))
    for split, fault in (("dev", "split"), ("held_out", "evaluation")):
        add(split=split)
        add(f"{fault}_overlap", image=planting.last())
        add(split=split)
        add(f"{fault}_near_overlap", image=encoded(photo(planting.seed).resize((150, 110)), "JPEG"))
    for number in range(10):
        add("repeated_image", image=good(1007), captions=["a picture of the sea"])
        if number == 0:
            planting.expected.append(("boilerplate", "train", f"train-{planting.seed}"))

    add("no_captions", captions=[])
    add("no_captions", captions=["", " \t"])
    add("empty_caption", captions=["two dogs run", " "])
    for text in ("http://a.org/b?c=d", "IMG_2041.jpeg", "a <b>dog</b>", "10 x 15, 2004 - 2005"):
        add("not_text", captions=[text])
    for text in ("a cafÃ©", "the dogâ€™s bone", "a caf\ufffd", "Ð´Ð²Ðµ Ñ\x81Ð¾Ð±Ð°ÐºÐ¸"):
        add("mojibake", captions=[text])
    for text in ("two\x00dogs", "two\u200bdogs", "\u202edogs"):
        add("control_characters", captions=[text])
    add("long_caption", captions=["dogs run " * 10])
    add("unknown_words", split="dev", captions=["δύο σκύλοι τρέχουν"])
    add("duplicate_id", identity=add())
    for identity in (" a", "a\x07b"):
        add("broken_id", identity=identity)


@pytest.fixture(scope="module")
def planting(tmp_path_factory):
    planting = Planting(tmp_path_factory.mktemp("planted"))
    plant_every_fault(planting)
    planting.write()
    return planting


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """A recipe for BERT's tokens, of which Greek is none."""
    path = tmp_path_factory.mktemp("recipe") / "recipe.py"
    path.write_text(
        "from mvlm_jax import config as config_lib\n"
        "def get_config():\n"
        "    config = config_lib.default()\n"
        "    config.text_encoder.kind, config.text.max_length = 'bert', 20\n"
        "    config.data.max_image_pixels = 1_000_000\n"
        "    return config\n"
    )
    return path


@pytest.fixture(scope="module")
def checked(planting, recipe, tmp_path_factory):
    """(exit status, directory of the report)"""
    directory = tmp_path_factory.mktemp("report")
    return check(planting, recipe, directory), directory


def check(planting: Planting, recipe: Path, directory: Path, *more: str) -> int:
    source = planting.directory
    return prepare_command.run(
        [
            "--check",
            "--dataset=planted",
            f"--source=dev=json:{source}/dev.json",
            f"--source=train=json:{source}/train.json",
            f"--against=held_out=json:{source}/held_out.json",
            f"--config={recipe}",
            f"--report_dir={directory}",
            *more,
        ]
    )


def found_in(directory: Path) -> list[tuple[str, str, str]]:
    content = json.loads((directory / "check.json").read_text())
    return [(finding["fault"], finding["split"], finding["id"]) for finding in content["findings"]]


def test_every_planted_fault_is_found_and_nothing_else(planting, checked):
    assert {fault for fault, _, _ in planting.expected} == set(FAULTS) - {"unread"}
    assert sorted(found_in(checked[1])) == sorted(planting.expected)
    content = json.loads((checked[1] / "check.json").read_text())
    assert content["counts"]["unread"] == content["stops"]["unread"] == 1
    place = f"entry {len(planting.lists['train'])}"
    assert content["left_out"] == {"dev": {}, "train": {"no_path": {"count": 1, "ids": [place]}}}


def test_report_counts_and_names_the_other_one_of_a_pair(planting, checked):
    content = json.loads((checked[1] / "check.json").read_text())
    assert content["examples"] == {split: len(planting.lists[split]) for split in ("dev", "train")}
    assert content["against"] == {"held_out": len(planting.lists["held_out"])}
    (overlap,) = (finding for finding in content["findings"] if finding["fault"] == "evaluation_overlap")
    entry = planting.lists["held_out"][overlap["other"]["index"]]
    assert (overlap["other"]["split"], overlap["other"]["id"]) == ("held_out", entry["image_id"])
    copy = planting.lists["train"][overlap["index"]]
    read = [(planting.directory / row["image"]).read_bytes() for row in (entry, copy)]
    assert read[0] == read[1] and copy["image_id"] == overlap["id"]
    # "dogs run" ten times, a start and an end.
    lengths = content["tokens"]["captions_by_length"]
    assert content["tokens"]["max_length"] == 20 and len(lengths) == 23 and lengths[22] == 1
    assert sum(lengths) == sum(content["captions"].values())


def test_page_shows_what_it_speaks_of_and_needs_no_other_file(checked):
    html = (checked[1] / "check.html").read_text()
    for fault in FAULTS:
        assert f'id="{fault}"' in html
    assert problems(html) == []
    assert html.count("data:image/jpeg;base64,") > 40
    assert "<b>dog" not in html and "&lt;b&gt;dog" in html  # a caption is no markup
    # Both pictures of a pair stand above what their captions say, and each fault has a remedy.
    near = html.partition('<h2 id="near_duplicate">')[2].partition("</h2>")[2].partition("<h2")[0]
    pair = near.partition('<div class="card">')[2].partition('<div class="card">')[0]
    assert pair.count("<img") == 2 == len(re.findall(r"<br>two dogs run \d+", pair))
    assert re.search(r"<p>the fingerprints agree in \d+ of 256 bits</p>", pair)
    for fault in FAULTS.values():
        assert escape(fault.remedy) in html


def test_findings_do_not_depend_on_the_number_of_threads(planting, recipe, checked, tmp_path, capsys):
    assert check(planting, recipe, tmp_path, "--workers=1") == checked[0] == 1
    for name in ("check.json", "check.html"):
        assert (tmp_path / name).read_bytes() == (checked[1] / name).read_bytes()


def test_policy_decides_the_exit_status(planting, recipe, tmp_path, capsys):
    assert check(planting, recipe, tmp_path, "--policy=errors") == 1
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith(
        "mvlm prepare: --policy=errors stops at missing 1, undecodable 3, truncated 2, too_large 1"
    )
    assert "near_duplicate" not in message.replace("near_overlap", "")
    assert check(planting, recipe, tmp_path, "--policy=none") == 0
    assert check(planting, recipe, tmp_path, "--policy=near_duplicate:3") == 0
    assert check(planting, recipe, tmp_path, "--policy=near_duplicate:2") == 1
    assert check(planting, recipe, tmp_path, "--policy=some") == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert all(fault in message for fault in (*FAULTS, "errors", "all", "none"))


@pytest.mark.parametrize(
    ("text", "stops"),
    [
        ("errors", ["missing"]),
        ("all", ["missing", "duplicate"]),
        ("none", []),
        ("missing:5", []),
        ("missing:4", ["missing"]),
        ("missing:10%", []),
        ("missing:9.9%", ["missing"]),
        ("errors,missing:10%,duplicate", ["duplicate"]),
        ("duplicate:20,all:2", ["missing", "duplicate"]),
        ("all,none,missing", ["missing", "duplicate"]),
    ],
)
def test_policy_lets_pass_what_it_says(text, stops):
    found = {"missing": 5, "duplicate": 20}
    assert parse_policy(text).violations(found, examples=50) == {fault: found[fault] for fault in stops}


@pytest.mark.parametrize("text", ["", "errors,", "missing:", "missing:x", "missing:-1", "missing:0.5", "missing:1:2"])
def test_wrong_policy_is_refused(text):
    with pytest.raises(UserError, match="--policy="):
        parse_policy(text)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--against=json:x.json"], "--against='json:x.json' is not NAME=URI"),
        (["--against=a=x.json"], "--against='a=x.json' is not NAME=URI"),
        (["--against=train=json:x.json"], "'train' is the name of a split"),
        (["--preview"], "--check and --preview exclude each other"),
        (["--step=3"], "--step is not used with --check"),
        (["--max_side=3"], "--max_side is not used with --check"),
    ],
)
def test_wrong_flags_are_refused_in_one_line(planting, capsys, flags, message):
    source = f"--source=json:{planting.directory}/train.json"
    assert prepare_command.run(["--check", "--dataset=mine", source, *flags]) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_prepared_dataset_is_checked_like_any_source_and_left_as_it_is(tmp_path, capsys, monkeypatch):
    source = pair_source(4, captions=["two dogs run"])
    source.examples[3] = {**source.examples[1], "image_id": "again"}
    write_dataset(Collection(splits={"train": source}, source="memory"), name="pairs", data_dir=tmp_path / "data")
    prepared = sorted((tmp_path / "data").rglob("*"))
    monkeypatch.chdir(tmp_path)
    flags = ["--check", "--dataset=pairs", f"--data_dir={tmp_path}/data", "--policy=duplicate"]
    assert prepare_command.run([*flags, "--source=tfds:pairs:train"]) == 1
    assert ("duplicate", "train", "again") in found_in(tmp_path / "reports" / "pairs")
    assert prepare_command.run([*flags, f"--source=arrayrecord:{tmp_path}/data/pairs/train[:3]"]) == 0
    assert sorted((tmp_path / "data").rglob("*")) == prepared


def test_collection_without_a_single_usable_caption_is_still_checked(tmp_path):
    (tmp_path / "list.json").write_text(json.dumps([{"image": "none.jpg", "caption": " "}]))
    flags = ["--check", "--dataset=mine", f"--source=json:{tmp_path}/list.json", f"--report_dir={tmp_path}"]
    assert prepare_command.run(flags) == 1
    assert found_in(tmp_path) == [("missing", "train", "none.jpg")]


def test_pictures_in_other_colours_are_not_near():
    def drawn(colour: str, *, at: int = 40) -> dict:
        image = Image.new("RGB", (128, 128), (170, 170, 170))
        image.paste(colour, (at, 40, at + 50, 90))
        return {"image": encoded(image), "captions": [f"a {colour} square"], "image_id": f"{colour} {at}"}

    examples = [drawn("red"), drawn("blue"), drawn("green"), drawn("red", at=20), drawn("red", at=41)]
    result = check_collection(Collection({"train": ListSource(examples)}, "drawn"), limits=LIMITS, tokenizer=None)
    assert [(finding.fault, finding.id, finding.other_id) for finding in result.findings] == [
        ("near_duplicate", "red 41", "red 40")
    ]


def test_nearest_of_several_is_named_once():
    image = photo(1)
    qualities = (95, 20, 90)
    examples = [
        {"image": encoded(image, "JPEG", quality=quality), "captions": ["a"], "image_id": str(quality)}
        for quality in qualities
    ]
    result = check_collection(Collection({"train": ListSource(examples)}, "memory"), limits=LIMITS, tokenizer=None)
    assert [(finding.id, finding.other_id) for finding in result.findings] == [("20", "95"), ("90", "95")]


def test_empty_collection_has_no_fault():
    result = check_collection(Collection({"train": ListSource([])}, "nothing"), limits=LIMITS, tokenizer=None)
    assert result.findings == () and result.examples == {"train": 0}


def test_lengths_include_start_and_end():
    tokenizer = train_tokenizer(["a b c d e f g h i j k l"], kind="bert", vocab_size=100)
    said = ["a b c", "a b c d e f g h i j", "a b c d e f g h i j k"]  # 5, 12 and 13 tokens
    examples = pair_source(1, captions=said)
    result = check_collection(Collection({"train": examples}, "memory"), limits=LIMITS, tokenizer=tokenizer)
    assert np.flatnonzero(result.lengths).tolist() == [5, 12, 13]
    assert [finding.detail for finding in result.findings if finding.fault == "long_caption"] == [
        f"13 tokens: {said[2]}"
    ]


@pytest.mark.parametrize("train", [400, pytest.param(shapes.TRAIN, marks=pytest.mark.slow)])
def test_the_drawn_scenes_have_no_fault(train):
    collection = shapes.collection(train=train)
    result = check_collection(
        collection,
        limits=Limits(max_pixels=10**6, image_size=48, max_length=38),
        tokenizer=tokenizer_for(collection, kind="roberta", vocab_size=400),
    )
    assert result.findings == ()
    assert sum(result.examples.values()) == train + 2 * shapes.HELD_OUT
