"""Examples without an id, and ids that come again: no two images share one that nobody gave to both."""

import json

import pyarrow as pa
import pytest
from array_record.python.array_record_module import ArrayRecordWriter
from examples import encoded, picture, write_tar
from pyarrow import parquet

from mvlm_jax.data.formats.ids import distinct, id_text
from mvlm_jax.data.sources import Source, open_source
from mvlm_jax.data.writing.shards import serialize

NAN = float("nan")
PATHS = ["a.jpg", "b.jpg", "c.jpg"]


def ids_of(source: Source) -> list[str]:
    return [source.example_id(i) for i in range(len(source))]


@pytest.mark.parametrize("value", [None, NAN, "", "  "])
def test_what_is_no_id_is_empty(value):
    assert id_text(value) == ""


def test_ids_are_text():
    assert [id_text(value) for value in (0, 7, "x ", b"caf\xc3\xa9")] == ["0", "7", "x ", "café"]


@pytest.mark.parametrize("values", [[None, None, 7], ["", " ", "7"], [None, "", "7"]])
def test_a_row_without_an_id_is_known_by_its_path(tmp_path, values):
    table = pa.table({"image": PATHS, "caption": ["x"] * 3, "id": values})
    parquet.write_table(table, tmp_path / "a.parquet")
    assert ids_of(open_source(f"table:{tmp_path}/a.parquet?id=id", data_dir="")) == ["a.jpg", "b.jpg", "7"]
    rows = "".join(f"{path},x,{'' if value is None else value}\n" for path, value in zip(PATHS, values))
    (tmp_path / "a.csv").write_text("image,caption,id\n" + rows)
    assert ids_of(open_source(f"table:{tmp_path}/a.csv?id=id", data_dir="")) == ["a.jpg", "b.jpg", "7"]
    entries = [{"image": path, "caption": "x", "image_id": value} for path, value in zip(PATHS, values)]
    (tmp_path / "a.json").write_text(json.dumps(entries))
    assert ids_of(open_source(f"json:{tmp_path}/a.json", data_dir="")) == ["a.jpg", "b.jpg", "7"]


def test_nan_of_pandas_is_no_id(tmp_path):
    parquet.write_table(pa.table({"image": PATHS, "caption": ["x"] * 3, "id": [NAN, NAN, 7.0]}), tmp_path / "a.parquet")
    assert ids_of(open_source(f"table:{tmp_path}/a.parquet?id=id", data_dir="")) == ["a.jpg", "b.jpg", "7.0"]


def test_published_lists_without_ids_know_an_image_by_its_file(tmp_path):
    coco = {"images": [{"id": None, "file_name": path} for path in PATHS], "annotations": []}
    (tmp_path / "coco.json").write_text(json.dumps(coco))
    assert ids_of(open_source(f"json:{tmp_path}/coco.json", data_dir="")) == PATHS
    images = [{"filename": path, "cocoid": None, "split": "train", "sentences": [{"raw": "x"}]} for path in PATHS]
    (tmp_path / "karpathy.json").write_text(json.dumps({"dataset": "x", "images": images}))
    assert ids_of(open_source(f"json:{tmp_path}/karpathy.json?split=train", data_dir="")) == ["a", "b", "c"]


def test_a_record_without_an_id_is_known_by_its_file_and_number(tmp_path):
    image = encoded(picture())
    for name in ("x", "y"):
        writer = ArrayRecordWriter(f"{tmp_path}/{name}.array_record", "group_size:1")
        for identity in ([b""], [], [b"7"]):
            writer.write(serialize({"image": [image], "captions": [b"a"], "image_id": identity}))
        writer.close()
    source = open_source(f"arrayrecord:{tmp_path}/*.array_record", data_dir="")
    assert ids_of(source) == [f"x.array_record#{i}" for i in range(2)] + ["7"] + [
        f"y.array_record#{i}" for i in range(2)
    ] + ["7"]
    assert [source[i]["image_id"] for i in range(6)] == ids_of(source)


def test_the_same_key_in_two_tar_files_is_two_images_and_more_files_rename_none(tmp_path):
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
        write_tar(tmp_path / name / "0.tar", {f"{key}.txt": b"x" for key in ("0", name)})
    two = ids_of(open_source(f"webdataset:{tmp_path}/{{a,b}}/0.tar", data_dir=""))
    three = ids_of(open_source(f"webdataset:{tmp_path}/*/0.tar", data_dir=""))
    assert three == ["0", "a", "b/0/0", "b", "c/0/0", "c"] and two == three[:4]


def test_keys_are_distinct_whatever_they_are():
    keys, files = ["k", "k", "a/k", "k", "a/k"], [0, 0, 0, 1, 1]
    ids = distinct(pa.array(keys, pa.large_string()), files=files, names=["a", "b"]).to_pylist()
    assert len(set(ids)) == 5 and ids[:2] == ["k", "a/k"] and ids[3] == "b/k"
