import contextlib
import fcntl
import functools
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from examples import ListSource, encoded, pair_source, picture, png_header, write_tar
from PIL import Image

from mvlm_jax import cli
from mvlm_jax.cli import prepare as prepare_command
from mvlm_jax.data.builders import flickr8k, registry
from mvlm_jax.data.builders.shapes import collection as shapes_collection
from mvlm_jax.data.collection import Collection
from mvlm_jax.data.images import decode_image
from mvlm_jax.data.skipped import Skipped
from mvlm_jax.data.sources import open_source
from mvlm_jax.data.writing import beam, processes, shards
from mvlm_jax.data.writing.dataset import MANIFEST, read_manifest, write_dataset, write_to
from mvlm_jax.data.writing.shards import ImageChecks
from mvlm_jax.errors import UserError

FLICKR8K = Path(os.environ.get("MVLM_FLICKR8K", "runs/flickr8k"))  # the published files
KILLED_IN_THE_MIDDLE = """
import os, pathlib, signal, sys
from mvlm_jax.data.builders import shapes
from mvlm_jax.data.writing.dataset import write_dataset
drawn, render = [], shapes.render
def render_or_die(scene):
    drawn.append(scene)
    if len(drawn) == 700:
        os.kill(os.getpid(), signal.SIGKILL)
    return render(scene)
shapes.render = render_or_die
write_dataset(shapes.collection(train=1100, val=4, test=4), name="shapes", data_dir=pathlib.Path(sys.argv[1]))
"""
ENDLESS = """
import pathlib, sys, time
from mvlm_jax.cli import prepare
from mvlm_jax.data.builders import registry
from mvlm_jax.data.collection import Collection
class Endless:
    def __init__(self, begun):
        self.begun = begun
    def __len__(self):
        return 2
    def __getitem__(self, index):
        self.begun.touch()
        time.sleep(3600)
if __name__ == "__main__":
    data_dir, begun = sys.argv[1:]
    splits = {"train": Endless(pathlib.Path(begun)), "val": Endless(pathlib.Path(begun))}
    registry.DRAWN["shapes"] = lambda: Collection(splits=splits, source="endless")
    sys.exit(prepare.run(["--dataset=shapes", f"--data_dir={data_dir}", "--workers=2"]))
"""


@pytest.fixture
def small_shapes(monkeypatch):
    monkeypatch.setitem(registry.DRAWN, "shapes", lambda: shapes_collection(train=9, val=4, test=4))


@pytest.fixture
def published(tmp_path):
    """A directory in the published layout: three good images and every kind of bad one."""
    source = tmp_path / "flickr8k"
    images = source / flickr8k.IMAGES
    images.mkdir(parents=True)
    cmyk = encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG")
    jpeg = encoded(picture(width=200, height=200), "JPEG")
    files = {
        "good.jpg": jpeg, "cmyk.jpg": cmyk, "held.jpg": jpeg, "cut.jpg": jpeg[: len(jpeg) // 2], "zero.jpg": b"",
        "page.jpg": b"<html>", "silent.jpg": jpeg, "blank.jpg": jpeg, "bomb.jpg": png_header(20_000, 20_000),
    }  # fmt: skip
    for name, data in files.items():
        (images / name).write_bytes(data)
    lines = [
        f"{name}#0\tA dog runs .".encode() for name in [*files, "absent.jpg"] if name not in ("silent.jpg", "blank.jpg")
    ]
    lines += [b"good.jpg#1\t caf\xc3\xa9 ", b"good.jpg#2\t", b"good.jpg#3\tcaf\xe9", b"no tab here", b"blank.jpg#0\t  "]
    (source / flickr8k.CAPTIONS).write_bytes(b"\n".join(lines) + b"\n")
    (source / flickr8k.LISTS["train"]).write_text("\n".join([*files, "absent.jpg", "good.jpg", "../evil.jpg"]))
    (source / flickr8k.LISTS["dev"]).write_text("held.jpg\n")
    return source


def run(capsys, *arguments: str) -> tuple[int, str]:
    status = prepare_command.run(list(arguments))
    return status, capsys.readouterr().err


def refusal(capsys, *arguments: str) -> str:
    status, error = run(capsys, *arguments)
    assert status == 2
    lines = [line for line in error.splitlines() if line.startswith("mvlm prepare: ")]
    assert len(lines) == 1
    return lines[0]


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_unusable_images_and_captions_are_counted_by_reason(published, tmp_path, capsys):
    data_dir = tmp_path / "data"
    arguments = ("--dataset=flickr8k", f"--source={published}", f"--data_dir={data_dir}")
    assert run(capsys, *arguments)[0] == 0

    manifest = read_manifest(data_dir / "flickr8k" / "1.0.0")
    train, dev = manifest["splits"]["train"], manifest["splits"]["dev"]
    assert (train["examples"], train["captions"]) == (2, 3)
    assert (dev["examples"], dev["captions"]) == (1, 1)
    assert train["skipped"] == {
        "absent": {"count": 2, "ids": ["../evil.jpg", "absent"]},
        "empty": {"count": 1, "ids": ["zero"]},
        "empty_caption": {"count": 2, "ids": ["good", "blank"]},
        "listed_twice": {"count": 2, "ids": ["held", "good"]},
        "no_captions": {"count": 2, "ids": ["silent", "blank"]},
        "too_large": {"count": 1, "ids": ["bomb"]},
        "truncated": {"count": 1, "ids": ["cut"]},
        "unrecognized": {"count": 1, "ids": ["page"]},
    }
    assert manifest["lines_left_out"] == {
        "malformed": {"count": 1, "ids": ["line 12"]},
        "not_utf8": {"count": 1, "ids": ["line 11"]},
    }

    source = open_source("tfds:flickr8k:train", data_dir=str(data_dir))
    assert [source[i]["image_id"] for i in range(len(source))] == ["good", "cmyk"]
    assert source[0]["captions"] == ["A dog runs .", "café"]
    assert source[0]["image"] == (published / flickr8k.IMAGES / "good.jpg").read_bytes()
    assert decode_image(source[1]["image"], max_pixels=100)[0, 0, 0] > 240


def test_source_without_a_usable_image_is_refused_and_leaves_nothing(published, tmp_path, capsys):
    for path in (published / flickr8k.IMAGES).iterdir():
        path.write_bytes(b"")
    message = refusal(capsys, "--dataset=flickr8k", f"--source={published}", f"--data_dir={tmp_path / 'data'}")
    assert "none of the 1 images of split dev can be used (empty: 1)" in message
    assert not list((tmp_path / "data").glob("**/*.json"))


def test_captions_in_another_encoding_are_refused_as_unusable(published, tmp_path, capsys):
    text = (published / flickr8k.CAPTIONS).read_bytes().decode("latin-1")
    (published / flickr8k.CAPTIONS).write_text(text, encoding="utf-16")
    message = refusal(capsys, "--dataset=flickr8k", f"--source={published}", f"--data_dir={tmp_path / 'data'}")
    assert "no_captions: 1" in message


def test_captions_file_may_start_with_a_byte_order_mark(tmp_path):
    (tmp_path / "tokens").write_bytes(b"\xef\xbb\xbfa.jpg#0\tone\r\na.jpg.1#0\ttwo\r\n\r\n")
    assert flickr8k.read_captions(tmp_path / "tokens", skipped=Skipped()) == {"a.jpg": ["one"], "a.jpg.1": ["two"]}


def test_tally_shows_at_most_twenty_ids_however_it_was_added_up():
    skipped, whole = Skipped(), Skipped()
    for i in range(50):
        skipped.add("absent", str(i))
        if i == 14:
            whole.merge(skipped.as_dict())
    whole.merge(skipped.as_dict())
    assert skipped.as_dict() == {"absent": {"count": 50, "ids": [str(i) for i in range(20)]}}
    assert whole.as_dict() == {"absent": {"count": 65, "ids": [*map(str, range(15)), *map(str, range(5))]}}


def test_prepared_dataset_is_left_alone(small_shapes, tmp_path, capsys):
    arguments = ("--dataset=shapes", f"--data_dir={tmp_path}")
    assert run(capsys, *arguments)[0] == 0
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("shapes/1.0.0/*")}
    assert prepare_command.run(list(arguments)) == 0
    assert "train: 9 images, 9 captions" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("shapes/1.0.0/*")} == before


def test_prepared_dataset_is_not_taken_for_one_of_another_source_or_size(published, small_shapes, tmp_path, capsys):
    data_dir = f"--data_dir={tmp_path}"
    assert run(capsys, "--dataset=shapes", data_dir)[0] == 0
    assert "already prepared with checks" in refusal(capsys, "--dataset=shapes", data_dir, "--max_side=32")
    source = f"--source=json:{published}/pairs.json"
    (published / "pairs.json").write_text(json.dumps([{"image": "x.jpg", "caption": "a"}]))
    assert "already prepared with source" in refusal(capsys, "--dataset=shapes", data_dir, source)


@pytest.fixture
def one_pair(tmp_path):
    """The command that prepares a list of one pair, and the list."""
    listed, data_dir = tmp_path / "pairs.json", tmp_path / "data"
    (tmp_path / "a.png").write_bytes(encoded(picture()))
    listed.write_text(json.dumps([{"image": "a.png", "caption": "a cat"}]))
    return ("--dataset=mine", f"--source=json:{listed}", f"--data_dir={data_dir}"), listed


def test_prepared_dataset_is_not_taken_for_one_of_a_changed_list(one_pair, capsys):
    arguments, listed = one_pair
    assert run(capsys, *arguments)[0] == 0
    copy = listed.read_bytes()
    listed.write_text(json.dumps([{"image": "a.png", "caption": "a dog"}]))
    message = refusal(capsys, *arguments)
    assert f"already prepared, but {listed} changed since; remove it, or choose another --dataset" in message
    listed.write_bytes(copy)
    os.utime(listed, (0, 0))
    assert run(capsys, *arguments)[0] == 0


def test_prepared_dataset_is_not_taken_for_one_of_another_directory(one_pair, tmp_path, capsys, monkeypatch):
    (dataset, _, data_dir), listed = one_pair
    arguments = (dataset, f"--source=json:{listed.name}", data_dir)
    monkeypatch.chdir(tmp_path)
    assert run(capsys, *arguments)[0] == 0
    (tmp_path / "other").mkdir()
    for name in ("a.png", listed.name):
        (tmp_path / "other" / name).write_bytes((tmp_path / name).read_bytes())
    monkeypatch.chdir(tmp_path / "other")
    assert f"but {tmp_path / 'other' / listed.name} was not read then, and 1 more" in refusal(capsys, *arguments)


def test_prepared_dataset_is_not_taken_for_one_of_more_tar_files(tmp_path, capsys):
    write_tar(tmp_path / "0.tar", {"0.png": encoded(picture()), "0.txt": b"a cat"})
    arguments = ("--dataset=mine", f"--source=webdataset:{tmp_path}/*.tar", f"--data_dir={tmp_path / 'data'}")
    assert run(capsys, *arguments)[0] == 0
    write_tar(tmp_path / "1.tar", {"1.png": encoded(picture()), "1.txt": b"a dog"})
    assert f"but {tmp_path / '1.tar'} was not read then; remove it" in refusal(capsys, *arguments)
    (tmp_path / "1.tar").unlink()
    write_tar(tmp_path / "0.tar", {"0.png": encoded(picture()), "0.txt": b"a cow"})
    assert f"but {tmp_path / '0.tar'} changed since; remove it" in refusal(capsys, *arguments)


def test_manifest_without_stamps_of_lists_counts_as_equal(one_pair, tmp_path, capsys):
    arguments, listed = one_pair
    assert run(capsys, *arguments)[0] == 0
    directory = tmp_path / "data" / "mine" / "1.0.0"
    manifest = read_manifest(directory)
    del manifest["files"]
    (directory / MANIFEST).write_text(json.dumps(manifest))
    listed.write_text(json.dumps([{"image": "a.png", "caption": "a dog"}]))
    assert run(capsys, *arguments)[0] == 0


def test_licence_that_comes_later_is_written_into_the_manifest(one_pair, tmp_path, capsys):
    arguments, _ = one_pair
    (tmp_path / "LICENCE").write_text("For research only.")
    assert run(capsys, *arguments)[0] == 0
    directory = tmp_path / "data" / "mine" / "1.0.0"
    before = read_manifest(directory)
    assert run(capsys, *arguments, f"--licence={tmp_path / 'LICENCE'}")[0] == 0
    assert read_manifest(directory) == {**before, "licence": "For research only."}
    assert run(capsys, *arguments)[0] == 0
    assert read_manifest(directory)["licence"] == "For research only."


class Costly(ListSource):
    """May not be asked anything."""

    def __len__(self):
        raise AssertionError("was drawn")


def test_what_is_prepared_already_is_not_drawn_again(tmp_path, small_shapes, monkeypatch):
    prepare = functools.partial(prepare_command.prepare, dataset="shapes", sources=(), data_dir=tmp_path)
    written = prepare()
    drawing = shapes_collection(train=9, val=4, test=4).source
    costly = Collection(splits={"train": Costly([])}, source=drawing)
    monkeypatch.setitem(registry.DRAWN, "shapes", lambda: costly)
    assert prepare() == written


def manifest_of_shapes(data_dir: Path, **options) -> dict:
    drawn = shapes_collection(train=1100, val=4, test=4)
    return read_manifest(write_dataset(drawn, name="shapes", data_dir=data_dir, **options))


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    return manifest_of_shapes(tmp_path_factory.mktemp("uninterrupted"))


def test_killed_prepare_leaves_nothing_that_looks_finished_and_is_continued(tmp_path, uninterrupted):
    killed = subprocess.run([sys.executable, "-c", KILLED_IN_THE_MIDDLE, str(tmp_path)], check=False)
    assert killed.returncode == -signal.SIGKILL
    with pytest.raises(UserError, match="is not prepared"):
        open_source("tfds:shapes:train", data_dir=str(tmp_path))
    first = tmp_path / "shapes" / "incomplete.1.0.0" / "shapes-train.array_record-00000-of-00003"
    written = first.stat().st_mtime_ns

    assert manifest_of_shapes(tmp_path) == uninterrupted
    assert (tmp_path / "shapes" / "1.0.0" / first.name).stat().st_mtime_ns == written
    assert sorted(path.name for path in (tmp_path / "shapes").iterdir()) == [".lock", "1.0.0"]
    names = {path.name for path in (tmp_path / "shapes" / "1.0.0").iterdir()}
    listed = {shard["file"] for split in uninterrupted["splits"].values() for shard in split["shards"]}
    ids = {f"ids-{split}.arrow" for split in ("train", "val", "test")}
    assert names == listed | ids | {MANIFEST, "dataset_info.json", "features.json"}


def test_worker_processes_write_the_same_files(tmp_path, uninterrupted):
    assert manifest_of_shapes(tmp_path, workers=2) == uninterrupted


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="the system does not bind processes to cores")
def test_workers_are_no_more_than_the_available_cpus(tmp_path, monkeypatch):
    def started(*args, **kwargs):
        raise AssertionError("a worker was started")

    monkeypatch.setattr(processes, "WORTH_WORKERS", 1)
    monkeypatch.setattr(processes, "ProcessPoolExecutor", started)
    monkeypatch.setattr(os, "cpu_count", lambda: 128)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {5})
    manifest = read_manifest(write_dataset(shapes_collection(train=2, val=1, test=1), name="few", data_dir=tmp_path))
    assert manifest["splits"]["train"]["examples"] == 2


def test_ctrl_c_is_one_line_and_ends_the_workers_at_once(tmp_path):
    program, begun = tmp_path / "program.py", tmp_path / "begun"
    program.write_text(ENDLESS)
    running = subprocess.Popen(
        [sys.executable, str(program), str(tmp_path / "data"), str(begun)],
        env={**os.environ, "PYTHONPATH": str(Path.cwd())},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        while not begun.exists() and running.poll() is None:
            time.sleep(0.05)
        os.killpg(running.pid, signal.SIGINT)
        _, errors = running.communicate(timeout=60)  # the workers hold stderr open, too
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(running.pid, signal.SIGKILL)
    assert (running.returncode, errors) == (130, "mvlm prepare: interrupted; the same command continues\n")


class Deadly(ListSource):
    """Ends the process that reads it, unless it was made there."""

    def __init__(self, examples):
        super().__init__(examples)
        self.made_in = os.getpid()

    def __getitem__(self, index):
        if os.getpid() != self.made_in:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(index)


def test_death_of_a_worker_is_one_line_and_the_rest_can_be_written_without(tmp_path):
    collection = Collection(splits={"train": Deadly(pair_source(3).examples)}, source="deadly")
    with pytest.raises(UserError, match="a worker process died, .* again with fewer --workers"):
        write_dataset(collection, name="deadly", data_dir=tmp_path, workers=2)
    write_dataset(collection, name="deadly", data_dir=tmp_path, workers=1)
    assert len(open_source("tfds:deadly:train", data_dir=str(tmp_path))) == 3


def interrupted(data_dir: Path, monkeypatch, collection: Collection, **options) -> Path:
    """What is left where the last of all shards could not be written."""
    write = shards.ArrayRecordWriter

    def full(path, options):
        if "shapes-test." in path:
            raise OSError(28, "No space left on device")
        return write(path, options)

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
        patch.setattr(shards, "ArrayRecordWriter", full)
        write_dataset(collection, name="shapes", data_dir=data_dir, **options)
    return data_dir / "shapes" / "incomplete.1.0.0" / "shapes-train.array_record-00000-of-00001"


def test_damaged_shard_is_written_again(tmp_path, monkeypatch):
    shard = interrupted(tmp_path, monkeypatch, shapes_collection(train=9, val=4, test=4))
    data = bytearray(shard.read_bytes())
    data[len(data) // 100] ^= 1
    shard.write_bytes(data)
    directory = write_dataset(shapes_collection(train=9, val=4, test=4), name="shapes", data_dir=tmp_path)
    digest = read_manifest(directory)["splits"]["train"]["shards"][0]["sha256"]
    assert hashlib.sha256((directory / shard.name).read_bytes()).hexdigest() == digest
    assert len([open_source("tfds:shapes:train", data_dir=str(tmp_path))[i] for i in range(9)]) == 9


def test_half_written_dataset_of_other_checks_starts_over(tmp_path, monkeypatch):
    drawn = shapes_collection(train=9, val=4, test=4)
    interrupted(tmp_path, monkeypatch, drawn)
    write_dataset(drawn, name="shapes", data_dir=tmp_path, checks=ImageChecks(max_side=32))
    source = open_source("tfds:shapes:train", data_dir=str(tmp_path))
    assert {decode_image(source[i]["image"], max_pixels=10_000).shape for i in range(9)} == {(32, 32, 3)}


def test_half_written_dataset_of_a_changed_list_starts_over(tmp_path, monkeypatch):
    def collection(caption: str) -> Collection:
        (tmp_path / "list.json").write_text(json.dumps([{"image": "a.png", "caption": caption}]))
        uris = [f"--source={split}=json:{tmp_path}/list.json" for split in ("train", "test")]
        return prepare_command.collect(
            "shapes", sources=[uri.removeprefix("--source=") for uri in uris], data_dir=tmp_path
        )

    (tmp_path / "a.png").write_bytes(encoded(picture()))
    interrupted(tmp_path, monkeypatch, collection("an old caption"))
    write_dataset(collection("a newer caption"), name="shapes", data_dir=tmp_path)
    assert open_source("tfds:shapes:train", data_dir=str(tmp_path))[0]["captions"] == ["a newer caption"]


def test_only_images_over_the_limit_are_made_smaller(tmp_path):
    images = {
        "large.jpg": encoded(picture(width=300, height=150), "JPEG"),
        "tall.png": encoded(picture(width=40, height=200)),
        "small.jpg": encoded(picture(width=100, height=60), "JPEG"),
    }
    for name, data in images.items():
        (tmp_path / name).write_bytes(data)
    (tmp_path / "list.json").write_text(json.dumps([{"image": name, "caption": name} for name in images]))
    collection = prepare_command.collect("mine", sources=[f"json:{tmp_path}/list.json"], data_dir=tmp_path)
    write_dataset(collection, name="mine", data_dir=tmp_path, checks=ImageChecks(max_side=100, quality=80))
    source = open_source("tfds:mine:train", data_dir=str(tmp_path))
    written = {source[i]["image_id"]: source[i]["image"] for i in range(3)}
    sizes = {name: decode_image(data, max_pixels=10**6).shape[:2] for name, data in written.items()}
    assert sizes == {"large.jpg": (50, 100), "tall.png": (100, 20), "small.jpg": (60, 100)}
    assert written["small.jpg"] == images["small.jpg"]
    assert all(Image.open(io.BytesIO(written[name])).format == "JPEG" for name in ("large.jpg", "tall.png"))


def test_manifest_says_where_everything_is_from(published, tmp_path, capsys):
    (tmp_path / "LICENCE").write_text("For research only.")
    arguments = ("--dataset=flickr8k", f"--source={published}", f"--data_dir={tmp_path}")
    assert run(capsys, *arguments, f"--licence={tmp_path / 'LICENCE'}")[0] == 0
    manifest = read_manifest(tmp_path / "flickr8k" / "1.0.0")
    assert (manifest["source"], manifest["licence"]) == (str(published), "For research only.")
    assert manifest["features"] == {"captions": "Sequence", "image": "Image", "image_id": "Text"}
    for split in manifest["splits"].values():
        for shard in split["shards"]:
            data = (tmp_path / "flickr8k" / "1.0.0" / shard["file"]).read_bytes()
            assert (shard["bytes"], shard["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())
        assert split["examples"] == sum(shard["examples"] for shard in split["shards"])


def test_shard_without_a_usable_image_is_no_hole(tmp_path):
    rows = [{"image": f"{i}.png", "caption": str(i)} for i in range(1100)]
    for i in (3, 1030):
        (tmp_path / f"{i}.png").write_bytes(encoded(picture(seed=i)))
    (tmp_path / "list.json").write_text(json.dumps(rows))
    collection = prepare_command.collect("mine", sources=[f"json:{tmp_path}/list.json"], data_dir=tmp_path)
    directory = write_dataset(collection, name="mine", data_dir=tmp_path)
    split = read_manifest(directory)["splits"]["train"]
    assert [shard["examples"] for shard in split["shards"]] == [1, 0, 1]
    assert split["skipped"]["absent"] == {"count": 1098, "ids": [f"{i}.png" for i in range(21) if i != 3]}
    source = open_source("tfds:mine:train", data_dir=str(tmp_path))
    assert (
        [source.example_id(i) for i in range(2)] == [source[i]["image_id"] for i in range(2)] == ["3.png", "1030.png"]
    )


def test_two_prepares_do_not_write_at_once(small_shapes, tmp_path, capsys):
    (tmp_path / "shapes").mkdir()
    with (tmp_path / "shapes" / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert "another mvlm prepare" in refusal(capsys, "--dataset=shapes", f"--data_dir={tmp_path}")


def test_full_disk_is_one_line_and_leaves_nothing_that_looks_finished(small_shapes, tmp_path, capsys, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(shards, "ArrayRecordWriter", full)
        message = refusal(capsys, "--dataset=shapes", f"--data_dir={tmp_path}")
    assert "cannot be written" in message and "No space left" in message
    assert not list((tmp_path / "shapes").glob("*/dataset_info.json"))
    assert run(capsys, "--dataset=shapes", f"--data_dir={tmp_path}")[0] == 0


def test_wrong_flags_are_refused_in_one_line(published, tmp_path, capsys):
    assert "'cifar' is not one of shapes, shapes_vqa, shapes_nlvr2, shapes_ve, flickr8k" in refusal(
        capsys, "--dataset=cifar"
    )
    assert "needs --source=URI with one of tfds:, arrayrecord:, json:" in refusal(capsys, "--dataset=cifar")
    assert "lower-case" in refusal(capsys, "--dataset=../x", "--source=json:a.json")
    twice = ("--source=json:a.json", "--source=json:b.json")
    assert "names a split twice" in refusal(capsys, "--dataset=mine", *twice)
    everything = refusal(capsys, "--dataset=mine", "--source=all=json:a.json")
    assert "a split 'all', which stands for all splits together" in everything
    assert "there is no file 'a.json'" in refusal(capsys, "--dataset=mine", "--source=json:a.json")
    assert "--licence" in refusal(capsys, "--dataset=shapes", f"--licence={tmp_path}/none")
    assert "quality" in refusal(capsys, "--dataset=shapes", "--quality=100")
    assert "--dataset" in refusal(capsys)
    assert "needs one --source" in refusal(capsys, "--dataset=flickr8k")
    assert "leave out --source=" in refusal(capsys, "--dataset=shapes", "--source=x")
    assert "not a directory" in refusal(capsys, "--dataset=flickr8k", f"--source={tmp_path}/nothing")
    assert flickr8k.CAPTIONS in refusal(capsys, "--dataset=flickr8k", f"--source={tmp_path}")
    for name in flickr8k.LISTS.values():
        (published / name).unlink(missing_ok=True)
    assert "none of the lists" in refusal(capsys, "--dataset=flickr8k", f"--source={published}")
    (tmp_path / "file").write_text("")
    assert "cannot be written" in refusal(capsys, "--dataset=shapes", f"--data_dir={tmp_path}/file")


def test_directories_in_buckets_are_refused_and_nothing_is_written(small_shapes, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    remote = "gs://bucket/data"
    report = refusal(capsys, "--check", "--dataset=shapes", f"--data_dir={tmp_path}", f"--report_dir={remote}")
    assert f"--report_dir={remote!r} is not a local path" in report
    assert "is not a local path" in refusal(capsys, "--dataset=flickr8k", f"--source={remote}")
    assert not list(tmp_path.iterdir())


def test_a_runner_without_beam_and_options_without_a_runner_are_refused(small_shapes, tmp_path, capsys, monkeypatch):
    shapes = ("--dataset=shapes", f"--data_dir={tmp_path / 'data'}")
    option = "--beam.direct_num_workers=4"
    assert "--beam.direct_num_workers is used only with --runner=direct|dataflow|spark" in refusal(
        capsys, *shapes, option
    )
    assert "--beam.runner is --runner here" in refusal(capsys, *shapes, "--beam.runner=DirectRunner")
    assert "--runner" in refusal(capsys, *shapes, "--runner=flink")
    assert "--runner is not used with --check" in refusal(capsys, *shapes, "--check", "--runner=direct")
    message = refusal(capsys, *shapes, "--runner=direct", "--workers=4")
    assert "--workers is not used with --runner; give Beam's own option, such as --beam.direct_num_workers=4" in message
    monkeypatch.setitem(sys.modules, "apache_beam.options.pipeline_options", None)
    message = refusal(capsys, *shapes, "--runner=direct", option, "--beam.save_main_session")
    assert "--runner=direct needs Apache Beam" in message and "pip install 'mvlm-jax[beam]'" in message
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "text",
    [
        "{} [while running 'Write']",
        'Traceback (most recent call last):\n  File "a.py", line 1\nmvlm_jax.ShardFailure: {}\n',
        "Pipeline failed in state FAILED: Error from SDK harness: Traceback\\nShardFailure: {}\\n\\nDuring handling",
    ],
)
def test_what_a_worker_of_a_pipeline_met_is_found_in_the_text_of_its_runner(text):
    refused = beam._failure(RuntimeError(text.format(f"{beam.REFUSED} 'a.tar' cannot be read: it is (cut) off")))
    assert isinstance(refused, UserError) and str(refused) == "'a.tar' cannot be read: it is (cut) off"
    not_written = beam._failure(RuntimeError(text.format(f"{beam.NOT_WRITTEN} No space left")))
    assert isinstance(not_written, OSError) and str(not_written) == "No space left"
    other = beam._failure(ValueError("Missing required option: region."))
    assert (
        str(other)
        == "the pipeline failed: Missing required option: region.; finished shards are kept for the same command"
    )


def test_list_that_vanishes_is_not_taken_for_an_error_of_writing(one_pair, capsys, monkeypatch):
    arguments, listed = one_pair

    def write_later(*args, **kwargs):
        listed.unlink()
        return write_to(*args, **kwargs)

    monkeypatch.setattr(prepare_command, "write_to", write_later)
    assert f"'{listed}' cannot be read: No such file" in refusal(capsys, *arguments)


def test_directories_may_start_at_the_home_directory(published, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "LICENCE").write_text("For research only.")
    flags = ("--dataset=flickr8k", "--source=~/flickr8k", "--data_dir=~/data")
    assert run(capsys, *flags, "--licence=~/LICENCE")[0] == 0
    assert read_manifest(tmp_path / "data" / "flickr8k" / "1.0.0")["source"] == str(published)
    run(capsys, "--check", *flags, "--report_dir=~/report")
    assert (tmp_path / "report" / "check.html").is_file() and not (tmp_path / "~").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_unwritable_data_dir_is_refused(tmp_path, capsys):
    tmp_path.chmod(0o500)
    assert "cannot be written" in refusal(capsys, "--dataset=shapes", f"--data_dir={tmp_path}/data")


def test_help_shows_an_example(capsys):
    assert prepare_command.run(["--help"]) == 0
    assert "mvlm prepare --dataset=shapes" in capsys.readouterr().out
    assert "prepare" in cli.COMMANDS


@pytest.mark.skipif(not FLICKR8K.is_dir(), reason="Flickr8k is not in $MVLM_FLICKR8K")
def test_published_flickr8k_is_read(tmp_path):
    captions = flickr8k.read_captions(FLICKR8K / flickr8k.CAPTIONS, skipped=(skipped := Skipped()))
    names = (FLICKR8K / flickr8k.LISTS["dev"]).read_text().split()
    assert len(names) == 1000 and all(len(captions[name]) == 5 for name in names)
    assert not skipped.counts
    data = (FLICKR8K / flickr8k.IMAGES / names[0]).read_bytes()
    assert decode_image(data, max_pixels=10**6).shape == (224, 224, 3)
