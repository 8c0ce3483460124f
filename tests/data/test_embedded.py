"""Parquet files with the images in them."""

import pickle

import pyarrow as pa
import pytest
from examples import encoded, picture
from pyarrow import parquet

from mvlm_jax.data.builders import fetched
from mvlm_jax.data.images import AbsentImage
from mvlm_jax.data.sources import open_source
from mvlm_jax.errors import UserError

IMAGES = [encoded(picture(seed=seed), "JPEG") for seed in range(5)]
AS_DATASETS_WRITES = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def write(path, images, captions, **columns) -> None:
    table = pa.table({"image": pa.array(images, AS_DATASETS_WRITES), "caption": captions, **columns})
    parquet.write_table(table, path, row_group_size=2)


def test_bytes_are_read_and_paths_where_there_are_none(tmp_path):
    (tmp_path / "3.jpg").write_bytes(IMAGES[3])
    first = [
        {"bytes": IMAGES[0], "path": "0.jpg"},
        {"bytes": IMAGES[1], "path": None},
        {"bytes": IMAGES[2], "path": "0.jpg"},
    ]
    write(tmp_path / "train-00000-of-00002.parquet", first, [["a", "b"], ["c"], None])
    second = [{"bytes": None, "path": "3.jpg"}, {"bytes": None, "path": None}]
    write(tmp_path / "train-00001-of-00002.parquet", second, [["d"], ["e"]])
    source = open_source(f"table:{tmp_path}/train-*.parquet", data_dir="")
    source = pickle.loads(pickle.dumps(source))
    assert [source[i]["image"] for i in (3, 0, 2, 1)] == [IMAGES[i] for i in (3, 0, 2, 1)]
    assert [source[i]["captions"] for i in range(4)] == [["a", "b"], ["c"], [""], ["d"]]
    first, second = (f"train-0000{number}-of-00002" for number in range(2))
    ids = ["0.jpg", f"{first}/1", f"{first}/0.jpg", "3.jpg", f"{second}/1"]
    assert [source.example_id(i) for i in range(5)] == ids and source[1]["image_id"] == ids[1]
    with pytest.raises(AbsentImage, match="has neither bytes nor a path"):
        source[4]


def test_rows_with_the_same_id_are_one_image(tmp_path):
    rows = [{"bytes": IMAGES[number], "path": None} for number in (0, 0, 1, 2)]
    write(tmp_path / "a.parquet", rows, ["a", "b", "c", "d"], id=["x", "x", None, None])
    source = open_source(f"table:{tmp_path}/a.parquet?id=id", data_dir="")
    examples = [source[i] for i in range(len(source))]
    assert [example["image"] for example in examples] == IMAGES[:3]
    assert [example["captions"] for example in examples] == [["a", "b"], ["c"], ["d"]]
    assert [example["image_id"] for example in examples] == ["x", "a/2", "a/3"]


def test_a_column_of_bytes_is_read_too(tmp_path):
    table = pa.table({"jpg": pa.array(IMAGES, pa.binary()), "text": list("abcde")})
    parquet.write_table(table, tmp_path / "a.parquet", row_group_size=2)
    source = open_source(f"table:{tmp_path}/a.parquet?image=jpg&caption=text", data_dir="")
    assert [source[i]["image"] for i in range(5)] == IMAGES


def test_a_file_that_is_damaged_is_refused_by_its_name(tmp_path):
    write(tmp_path / "a.parquet", [{"bytes": image, "path": None} for image in IMAGES], list("abcde"))
    source = open_source(f"table:{tmp_path}/a.parquet", data_dir="")
    whole = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "a.parquet").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"row group 0 of '.*a.parquet' cannot be read"):
        source[0]
    with pytest.raises(UserError, match=r"a.parquet' cannot be read with the columns image: "):
        open_source(f"table:{tmp_path}/a.parquet", data_dir="")


@pytest.mark.parametrize(("ending", "kind"), [("webp", "WEBP"), ("png", "PNG"), ("jpg", "JPEG")])
def test_files_of_img2dataset_are_found_in_any_format(tmp_path, ending, kind):
    for number, name in enumerate(("00000", "00001")):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"0.{ending}").write_bytes(encoded(picture(seed=number), kind))
        keys = {"key": ["0", "1"], "caption": [f"of {name}", "not fetched"]}
        parquet.write_table(pa.table(keys), tmp_path / f"{name}.parquet")
    source, _ = fetched.open_fetched(tmp_path)
    assert [source.example_id(i) for i in range(4)] == ["0", "1", "00001/0", "00001/1"]
    assert source[2] == {
        "image": encoded(picture(seed=1), kind), "captions": ["of 00001"], "image_id": "00001/0"
    }  # fmt: skip
    with pytest.raises(AbsentImage):
        source[1]
