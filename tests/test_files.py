"""Single files: which path is meant, what is no JSON object, and texts that are whole or as before."""

import codecs
import os

import pytest

from mvlm_jax.data.paths import local_path
from mvlm_jax.errors import UserError
from mvlm_jax.files import read_json, user_path, write_text


@pytest.mark.parametrize("address", ["gs://bucket/run", "s3://bucket", "file:///run"])
def test_an_address_is_refused_with_the_name_of_what_gives_it(address):
    with pytest.raises(UserError, match=f"^{address} is not a local path; mount the bucket"):
        user_path(address)
    for read in (user_path, local_path):
        with pytest.raises(UserError, match=f"^data_dir='{address}' is not a local path; mount the bucket"):
            read(address, name="data_dir")


def test_an_address_further_on_in_a_path_is_part_of_a_name():
    assert str(user_path("runs/of gs://bucket")) == "runs/of gs:/bucket"


@pytest.mark.parametrize("mark", [b"", codecs.BOM_UTF8])
def test_a_json_object_is_read_with_a_byte_order_mark_and_without(tmp_path, mark):
    (tmp_path / "a.json").write_bytes(mark + '{"name": "é"}'.encode())
    assert read_json(tmp_path / "a.json") == {"name": "é"}


@pytest.mark.parametrize(
    "content, said",
    [
        (None, "cannot be read as JSON: [Errno 2] No such file"),
        (b"{", "cannot be read as JSON: Expecting property name"),
        (b'{"name": "\xe9"}', "cannot be read as JSON: 'utf-8' codec can't decode"),
        (b"[1]", "holds a list; a JSON object is needed"),
    ],
)
def test_what_is_no_json_object_is_refused_in_one_line(tmp_path, content, said):
    if content is not None:
        (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_json(tmp_path / "a.json")
    assert str(caught.value).startswith(f"'{tmp_path}/a.json' {said}") and "\n" not in str(caught.value)


def test_a_text_is_written_as_a_whole_or_the_old_one_stays(tmp_path, monkeypatch):
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
