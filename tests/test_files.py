"""Local files: which path is meant, what is not a JSON object, and files and folders that are written atomically."""

import codecs
import os

import numpy as np
import pytest

from mvlm_jax.data.paths import local_path
from mvlm_jax.errors import UserError
from mvlm_jax.files import atomically, read_json, user_path, write_json, write_text


@pytest.mark.parametrize("address", ["gs://bucket/run", "s3://bucket", "file:///run"])
def test_an_address_is_refused_with_the_name_of_its_flag(address):
    with pytest.raises(UserError, match=f"^{address} is not a local path; copy the files first, or mount"):
        user_path(address)
    for read in (user_path, local_path):
        with pytest.raises(
            UserError, match=f"^data_dir='{address}' is not a local path; copy the files first, or mount"
        ):
            read(address, name="data_dir")


def test_an_address_further_on_in_a_path_is_part_of_a_name():
    assert str(user_path("runs/of gs://bucket")) == "runs/of gs:/bucket"


@pytest.mark.parametrize("mark", [b"", codecs.BOM_UTF8])
def test_a_json_object_is_read_with_a_byte_order_mark_and_without(tmp_path, mark):
    (tmp_path / "a.json").write_bytes(mark + '{"name": "é"}'.encode())
    assert read_json(tmp_path / "a.json") == {"name": "é"}


@pytest.mark.parametrize(
    "content, message",
    [
        (None, "cannot be read as JSON: [Errno 2] No such file"),
        (b"{", "cannot be read as JSON: Expecting property name"),
        (b'{"name": "\xe9"}', "cannot be read as JSON: 'utf-8' codec can't decode"),
        (b"[1]", "holds a list; a JSON object is needed"),
    ],
)
def test_a_file_without_a_json_object_is_refused_in_one_line(tmp_path, content, message):
    if content is not None:
        (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_json(tmp_path / "a.json")
    assert str(caught.value).startswith(f"'{tmp_path}/a.json' {message}") and "\n" not in str(caught.value)


def test_a_text_is_written_whole_or_the_old_one_stays(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    write_text(path, "é")
    assert path.read_bytes() == "é".encode()
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "half a character: \ud83d")
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_text(path, "new")
    assert path.read_bytes() == "é".encode() and list(tmp_path.iterdir()) == [path]
    monkeypatch.undo()
    write_text(path, "\ud83d", errors="replace")
    assert path.read_text() == "?"


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    with pytest.raises(KeyError):
        with atomically(tmp_path / "export") as folder:
            folder.mkdir()
            (folder / "weights").touch()
            raise KeyError
    assert not list(tmp_path.iterdir())
    with atomically(tmp_path / "export") as folder:
        folder.mkdir()
        (folder / "weights").touch()
        assert not (tmp_path / "export").exists()
    assert [path.name for path in tmp_path.rglob("*")] == ["export", "weights"]


def test_numpy_values_and_numbers_that_are_not_finite_are_written_as_json(tmp_path):
    values = {
        "a": np.float32(0.5),
        "b": np.arange(2),
        "c": [float("nan"), float("inf")],
        "d": np.float64("nan"),
        3: "x",
    }
    write_json(tmp_path / "eval" / "values.json", values)
    assert read_json(tmp_path / "eval" / "values.json") == {
        "a": 0.5,
        "b": [0, 1],
        "c": [None, None],
        "d": None,
        "3": "x",
    }
