import fcntl
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from examples import encoded, picture, png_header
from PIL import Image

from mvlm_jax import doors
from mvlm_jax import prepare as prepare_door
from mvlm_jax.data.builders import flickr8k
from mvlm_jax.data.builders.reporting import Tally
from mvlm_jax.data.builders.shapes import Shapes
from mvlm_jax.data.images import decode_image
from mvlm_jax.data.sources import open_source
from mvlm_jax.errors import UserError

FLICKR8K = Path("../shared/data/flickr8k")
KILLED_IN_THE_MIDDLE = """
import os, signal, sys
from mvlm_jax import prepare
from mvlm_jax.data.builders import shapes
drawn, render = [], shapes.render
def render_or_die(scene):
    drawn.append(scene)
    if len(drawn) == 300:
        os.kill(os.getpid(), signal.SIGKILL)
    return render(scene)
shapes.render = render_or_die
sys.exit(prepare.door(["--dataset=shapes", f"--data_dir={sys.argv[1]}"]))
"""


@pytest.fixture
def small_shapes(monkeypatch):
    monkeypatch.setattr(prepare_door, "Shapes", lambda **kwargs: Shapes(train=9, val=4, test=4, **kwargs))


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


def door(capsys, *arguments: str) -> tuple[int, str]:
    status = prepare_door.door(list(arguments))
    return status, capsys.readouterr().err


def refusal(capsys, *arguments: str) -> str:
    status, error = door(capsys, *arguments)
    assert status == 2
    lines = [line for line in error.splitlines() if line.startswith("mvlm prepare: ")]
    assert len(lines) == 1
    return lines[0]


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_unusable_images_and_captions_are_counted_by_reason(published, tmp_path, capsys):
    data_dir = tmp_path / "data"
    arguments = ("--dataset=flickr8k", f"--source={published}", f"--data_dir={data_dir}")
    assert door(capsys, *arguments)[0] == 0

    report = json.loads((data_dir / "flickr8k" / "1.0.0" / "report.json").read_text())
    train, dev = report["splits"]["train"], report["splits"]["dev"]
    assert (train["examples"], train["captions"]) == (2, 3)
    assert (dev["examples"], dev["captions"]) == (1, 1)
    assert train["skipped"] == {
        "absent": {"count": 1, "ids": ["absent.jpg"]},
        "empty": {"count": 1, "ids": ["zero.jpg"]},
        "empty_caption": {"count": 2, "ids": ["good.jpg", "blank.jpg"]},
        "listed_twice": {"count": 2, "ids": ["held.jpg", "good.jpg"]},
        "no_captions": {"count": 3, "ids": ["silent.jpg", "blank.jpg", "../evil.jpg"]},
        "too_large": {"count": 1, "ids": ["bomb.jpg"]},
        "truncated": {"count": 1, "ids": ["cut.jpg"]},
        "unrecognized": {"count": 1, "ids": ["page.jpg"]},
    }
    assert report["caption_lines_skipped"] == {
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
    assert "none of the 1 images listed in Flickr_8k.devImages.txt can be used (empty: 1)" in message
    assert not list((tmp_path / "data").glob("**/*.json"))


def test_captions_in_another_encoding_are_refused_as_unusable(published, tmp_path, capsys):
    text = (published / flickr8k.CAPTIONS).read_bytes().decode("latin-1")
    (published / flickr8k.CAPTIONS).write_text(text, encoding="utf-16")
    message = refusal(capsys, "--dataset=flickr8k", f"--source={published}", f"--data_dir={tmp_path / 'data'}")
    assert "no_captions: 1" in message


def test_captions_file_may_start_with_a_byte_order_mark(tmp_path):
    (tmp_path / "tokens").write_bytes(b"\xef\xbb\xbfa.jpg#0\tone\r\na.jpg.1#0\ttwo\r\n\r\n")
    assert flickr8k.read_captions(tmp_path / "tokens", skipped=Tally()) == {"a.jpg": ["one"], "a.jpg.1": ["two"]}


def test_report_shows_at_most_twenty_ids():
    tally = Tally()
    for i in range(50):
        tally.add("absent", str(i))
    assert tally.as_dict() == {"absent": {"count": 50, "ids": [str(i) for i in range(20)]}}


def test_prepared_dataset_is_left_alone(small_shapes, tmp_path, capsys):
    arguments = ("--dataset=shapes", f"--data_dir={tmp_path}")
    assert door(capsys, *arguments)[0] == 0
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("shapes/1.0.0/*")}
    assert prepare_door.door(list(arguments)) == 0
    output = capsys.readouterr().out
    assert "already prepared" in output and "train: 9 images, 9 captions" in output
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("shapes/1.0.0/*")} == before


def test_killed_prepare_leaves_nothing_that_looks_finished_and_can_run_again(small_shapes, tmp_path, capsys):
    killed = subprocess.run([sys.executable, "-c", KILLED_IN_THE_MIDDLE, str(tmp_path)], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert list((tmp_path / "shapes").glob("*incomplete*"))
    assert not list(tmp_path.glob("**/report.json"))
    with pytest.raises(UserError, match="is not prepared"):
        open_source("tfds:shapes:train", data_dir=str(tmp_path))

    assert door(capsys, "--dataset=shapes", f"--data_dir={tmp_path}")[0] == 0
    assert len(open_source("tfds:shapes:train", data_dir=str(tmp_path))) == 9
    assert not list((tmp_path / "shapes").glob("*incomplete*"))


def test_two_prepares_do_not_write_at_once(small_shapes, tmp_path, capsys):
    (tmp_path / "shapes").mkdir()
    with (tmp_path / "shapes" / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert "another prepare" in refusal(capsys, "--dataset=shapes", f"--data_dir={tmp_path}")


def test_full_disk_is_one_line_and_leaves_nothing(small_shapes, tmp_path, capsys, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mvlm_jax.data.builders.reporting.json.dumps", full)
    message = refusal(capsys, "--dataset=shapes", f"--data_dir={tmp_path}")
    assert "cannot be written" in message and "No space left" in message
    assert [path.name for path in (tmp_path / "shapes").iterdir()] == [".lock"]


def test_wrong_flags_are_refused_in_one_line(published, tmp_path, capsys):
    assert "'cifar' is not one of shapes, flickr8k" in refusal(capsys, "--dataset=cifar")
    assert "--dataset" in refusal(capsys)
    assert "needs --source" in refusal(capsys, "--dataset=flickr8k")
    assert "leave it out" in refusal(capsys, "--dataset=shapes", "--source=x")
    assert "not a directory" in refusal(capsys, "--dataset=flickr8k", f"--source={tmp_path}/nothing")
    assert flickr8k.CAPTIONS in refusal(capsys, "--dataset=flickr8k", f"--source={tmp_path}")
    for name in flickr8k.LISTS.values():
        (published / name).unlink(missing_ok=True)
    assert "none of the lists" in refusal(capsys, "--dataset=flickr8k", f"--source={published}")
    (tmp_path / "file").write_text("")
    assert "cannot be written" in refusal(capsys, "--dataset=shapes", f"--data_dir={tmp_path}/file")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_unwritable_data_dir_is_refused(tmp_path, capsys):
    tmp_path.chmod(0o500)
    assert "cannot be written" in refusal(capsys, "--dataset=shapes", f"--data_dir={tmp_path}/data")


def test_help_shows_an_example(capsys):
    assert prepare_door.door(["--help"]) == 0
    assert "mvlm prepare --dataset=shapes" in capsys.readouterr().out
    assert "prepare" in doors.DOORS


@pytest.mark.skipif(not FLICKR8K.is_dir(), reason="Flickr8k is not here")
def test_published_flickr8k_is_read(tmp_path):
    captions = flickr8k.read_captions(FLICKR8K / flickr8k.CAPTIONS, skipped=(skipped := Tally()))
    names = (FLICKR8K / flickr8k.LISTS["dev"]).read_text().split()
    assert len(names) == 1000 and all(len(captions[name]) == 5 for name in names)
    assert not skipped.counts
    data = (FLICKR8K / flickr8k.IMAGES / names[0]).read_bytes()
    assert decode_image(data, max_pixels=10**6).shape == (224, 224, 3)
