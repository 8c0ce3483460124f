"""Paths with characters that mean something to a pattern or a URI, and paths that are none here."""

import json
from pathlib import Path

import pytest
from array_record.python.array_record_module import ArrayRecordWriter
from examples import encoded, picture, write_tar

from mvlm_jax.cli import prepare as prepare_command
from mvlm_jax.data.formats.nlvr2 import open_nlvr2
from mvlm_jax.data.paths import matching, split_query
from mvlm_jax.data.sources import open_labelled, open_source, source_files
from mvlm_jax.data.writing.shards import serialize
from mvlm_jax.errors import UserError

ODD = ("[final]", "a{b}", "{x,y}", "50% #1", "%20", "what?", "a b", "*", "é~")
IMAGE = encoded(picture(), "JPEG")


@pytest.fixture(params=ODD)
def odd(request, tmp_path):
    """A directory with a pair in every format, below a name that could be a pattern, beside one that it would match."""
    for name in (request.param, "f", "x"):
        directory = tmp_path / name
        directory.mkdir(exist_ok=True)
        (directory / "0.jpg").write_bytes(IMAGE)
        (directory / "a.json").write_text('[{"image": "0.jpg", "caption": "a"}]')
        (directory / "a.csv").write_text("image,caption\n0.jpg,a\n")
        write_tar(directory / "0.tar", {"0.jpg": IMAGE, "0.txt": b"a"})
        writer = ArrayRecordWriter(f"{directory}/x.array_record", "group_size:1")
        writer.write(serialize({"image": [IMAGE], "captions": [b"a"], "image_id": [b"0"]}))
        writer.close()
    return tmp_path / request.param


def test_a_directory_of_any_name_is_read_and_its_files_are_noted(odd):
    files = {
        "json:{}/a.json": "a.json", "json:{0}/a.json?image_root={0}": "a.json", "table:{}/a.csv": "a.csv",
        "webdataset:{}/0.tar": "0.tar", "webdataset:{}/*.tar": "0.tar", "webdataset:{}/{{0..0}}.tar": "0.tar",
        "arrayrecord:{}/x.array_record": "x.array_record", "arrayrecord:{}/*.array_record": "x.array_record",
    }  # fmt: skip
    for form, file in files.items():
        uri = form.format(odd)
        source = open_source(uri, data_dir="")
        assert len(source) == 1 and source[0]["image"] == IMAGE, uri
        assert source_files(uri) == (odd / file,), uri


def test_a_list_that_grew_is_noticed_in_a_directory_of_any_name(odd, capsys):
    arguments = ["--dataset=mine", f"--source=json:{odd}/a.json", f"--data_dir={odd}/data"]
    assert prepare_command.run(arguments) == 0
    (odd / "b.jpg").write_bytes(IMAGE)
    (odd / "a.json").write_text(json.dumps([{"image": name, "caption": "a"} for name in ("0.jpg", "b.jpg")]))
    assert prepare_command.run(arguments) == 2
    assert f"{odd}/a.json changed since" in capsys.readouterr().err
    assert len(open_source(f"arrayrecord:{odd}/data/mine/train", data_dir="")) == 1
    assert len(open_source("tfds:mine:train", data_dir=f"{odd}/data")) == 1


def test_patterns_still_match(tmp_path):
    for name in ("a1", "a2", "b1"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "0.tar").touch()
    tars = {name: str(tmp_path / name / "0.tar") for name in ("a1", "a2", "b1")}
    assert matching(f"{tmp_path}/a*/0.tar") == [tars["a1"], tars["a2"]]
    assert matching(f"{tmp_path}/{{b1,a[12]}}/*.tar") == [tars["b1"], tars["a1"], tars["a2"]]
    assert matching(f"{tmp_path}/{{a1,a*}}/0.tar") == [tars["a1"], tars["a2"]]
    assert matching(f"{tmp_path}/**/0.tar") == sorted(tars.values())
    assert matching(f"{tmp_path}/none.tar") == [f"{tmp_path}/none.tar"]
    with pytest.raises(UserError, match="no file matches"):
        matching(f"{tmp_path}/c*.tar")


def test_files_that_their_names_promise_are_missed(tmp_path, caplog):
    for number in (0, 2):
        (tmp_path / f"a-0000{number}-of-00003.csv").write_text("image,caption\na.jpg,a\n")
    open_source(f"table:{tmp_path}/a-*.csv", data_dir="")
    assert f"{tmp_path}/a-*-of-00003.csv: 2 of 3 files are read" in caplog.text


def test_options_begin_behind_what_exists(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("what?").write_text("")
    assert split_query("what?") == ("what?", "")
    assert split_query("what??split=train") == ("what?", "split=train")
    assert split_query("other?split=train") == ("other", "split=train")


def test_home_is_known_in_every_place_of_a_path(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "0.jpg").write_bytes(IMAGE)
    (tmp_path / "a.json").write_text('[{"image": "~/0.jpg", "caption": "a"}]')
    (tmp_path / "dev.json").write_text("")
    for uri in ("json:~/a.json", f"json:{tmp_path}/a.json?image_root=~"):
        assert open_source(uri, data_dir="")[0]["image"] == IMAGE
    assert len(open_labelled("nlvr2:~?split=dev", data_dir="")) == len(open_nlvr2(tmp_path, "dev")) == 0


@pytest.mark.parametrize("scheme", ["gs", "s3", "http", "HTTPS", "hdfs", "file"])
def test_addresses_in_lists_are_refused_in_one_line(tmp_path, scheme):
    (tmp_path / "a.json").write_text(json.dumps([{"image": f"{scheme}://bucket/a.jpg", "caption": "a"}]))
    (tmp_path / "a.csv").write_text(f"image,caption\n{scheme}://bucket/a.jpg,a\n")
    for uri in (f"json:{tmp_path}/a.json", f"table:{tmp_path}/a.csv"):
        with pytest.raises(UserError, match=f"'{scheme}://bucket/a.jpg' is a URL; fetch, copy or mount") as caught:
            open_source(uri, data_dir="")
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("path", ["C:\\data\\0.jpg", "c:/data/0.jpg", "\\\\host\\data\\0.jpg", "images\\0.jpg"])
def test_paths_of_windows_in_lists_are_refused_with_a_hint(tmp_path, path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "0.jpg").write_bytes(IMAGE)
    (tmp_path / "a.json").write_text(json.dumps([{"image": path, "caption": "a"}]))
    with pytest.raises(UserError, match="written as on Windows; write / for each backslash"):
        open_source(f"json:{tmp_path}/a.json", data_dir="")


def test_a_file_that_is_called_so_is_read(tmp_path):
    (tmp_path / "images\\0.jpg").write_bytes(IMAGE)
    (tmp_path / "a.json").write_text(json.dumps([{"image": "images\\0.jpg", "caption": "a"}]))
    assert open_source(f"json:{tmp_path}/a.json", data_dir="")[0]["image"] == IMAGE


def test_a_caption_with_a_backslash_in_the_column_of_paths_stops_nothing(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps([{"image": "a dog \\ a cat", "caption": "0.jpg"}]))
    assert len(open_source(f"json:{tmp_path}/a.json", data_dir="")) == 1


@pytest.mark.parametrize(
    "uri",
    ["json:C:\\data\\a.json", "table:C:\\data\\a.csv", "webdataset:C:\\x\\*.tar", "arrayrecord:C:/x*",
     "json:data\\a.json", "webdataset:data\\a.tar", "json:{}?image_root=C:\\x"],
)  # fmt: skip
def test_paths_of_windows_in_uris_are_refused_with_a_hint(tmp_path, uri):
    (tmp_path / "a.json").write_text("[]")
    with pytest.raises(UserError, match="written as on Windows") as caught:
        open_source(uri.format(tmp_path / "a.json"), data_dir="")
    assert "\n" not in str(caught.value)
