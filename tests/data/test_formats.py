import errno
import json
import os
import pickle
from pathlib import Path

import pyarrow as pa
import pytest
from array_record.python.array_record_module import ArrayRecordWriter
from examples import encoded, picture, write_tar
from pyarrow import parquet

from mvlm_jax.data.builders import shapes
from mvlm_jax.data.images import AbsentImage, UnusableImage
from mvlm_jax.data.paths import expand_braces
from mvlm_jax.data.sources import Source, open_source
from mvlm_jax.data.writing.dataset import write_dataset
from mvlm_jax.errors import UserError


@pytest.fixture
def images(tmp_path):
    """Three images in a directory of their own, by name."""
    data = {name: encoded(picture(seed=i), "JPEG") for i, name in enumerate(("one.jpg", "two.jpg", "three.jpg"))}
    (tmp_path / "images").mkdir()
    for name, image in data.items():
        (tmp_path / "images" / name).write_bytes(image)
    return data


def opened(uri: str) -> Source:
    source = open_source(uri, data_dir="")
    copy = pickle.loads(pickle.dumps(source))
    assert isinstance(source, Source) and len(copy) == len(source)
    for i in range(len(source)):
        try:
            example = source[i]
        except UnusableImage:
            continue
        assert copy[i] == example and copy.example_id(i) == source.example_id(i) == example["image_id"]
    return source


def refusal(uri: str) -> str:
    with pytest.raises(UserError) as caught:
        open_source(uri, data_dir="")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def said(source: Source) -> dict[str, list[str]]:
    return {source[i]["image_id"]: source[i]["captions"] for i in range(len(source))}


def write_json(path, content) -> str:
    path.write_text(json.dumps(content))
    return f"json:{path}"


def test_albef_lists_gather_the_captions_of_an_image(tmp_path, images):
    uri = write_json(
        tmp_path / "ann.json",
        [
            {"image": "images/one.jpg", "caption": "first", "image_id": 7},
            {"image": "images/two.jpg", "caption": ["second", "deuxième"]},
            {"image": "images/one.jpg", "caption": "again", "image_id": 7},
            {"image": str(tmp_path / "images/three.jpg"), "caption": None, "image_id": "coco_3"},
        ],
    )
    source = opened(uri)
    assert said(source) == {"7": ["first", "again"], "images/two.jpg": ["second", "deuxième"], "coco_3": [""]}
    assert source[0]["image"] == images["one.jpg"]
    assert source[2]["image"] == images["three.jpg"]


KARPATHY = {
    "dataset": "coco",
    "images": [
        {"filepath": "images", "filename": name, "imgid": i, "cocoid": 100 + i, "split": split, "sentids": [i],
         "sentences": [{"tokens": ["a"], "raw": f"a {name}", "imgid": i, "sentid": i}]}
        for i, (name, split) in enumerate([("one.jpg", "train"), ("two.jpg", "restval"), ("three.jpg", "test")])
    ],
}  # fmt: skip


def test_karpathy_lists_are_read_by_split(tmp_path, images):
    uri = write_json(tmp_path / "dataset_coco.json", KARPATHY)
    assert said(opened(f"{uri}?split=train")) == {"100": ["a one.jpg"]}
    assert said(opened(f"{uri}?split=train,restval")) == {"100": ["a one.jpg"], "101": ["a two.jpg"]}
    assert "none was chosen; add ?split= and one or more of restval (1 images), test (1" in refusal(uri)
    assert "no split 'dev'" in refusal(f"{uri}?split=dev")


def test_karpathy_lists_without_coco_ids_know_an_image_by_its_file(tmp_path, images):
    image = {key: value for key, value in KARPATHY["images"][0].items() if key not in ("filepath", "cocoid")}
    uri = write_json(tmp_path / "dataset_flickr30k.json", {"dataset": "flickr30k", "images": [image]})
    assert said(opened(f"{uri}?split=train&image_root={tmp_path}/images")) == {"one": ["a one.jpg"]}


def test_coco_captions_are_joined_to_their_images(tmp_path, images):
    uri = write_json(
        tmp_path / "captions_train2014.json",
        {
            "info": {}, "licenses": [],
            "images": [{"id": 5, "file_name": "two.jpg", "width": 40, "height": 30}, {"id": 9, "file_name": "one.jpg"}],
            "annotations": [{"image_id": 9, "id": 1, "caption": "nine"}, {"image_id": 5, "id": 2, "caption": "five"},
                            {"image_id": 9, "id": 3, "caption": "neuf"}],
        },
    )  # fmt: skip
    source = opened(f"{uri}?image_root={tmp_path / 'images'}")
    assert said(source) == {"5": ["five"], "9": ["nine", "neuf"]}
    assert source[0]["image"] == images["two.jpg"]


def test_image_that_is_not_there_is_found_out_when_it_is_read(tmp_path, images):
    rows = [{"image": f"images/{name}", "caption": "x"} for name in ("none.jpg", "", "a\0b", "two.jpg/x")]
    source = opened(write_json(tmp_path / "ann.json", rows))
    for i in range(len(source)):
        with pytest.raises(AbsentImage) as caught:
            source[i]
        assert caught.value.reason == "absent"
    assert source.example_id(0) == "images/none.jpg"


def test_path_that_cannot_be_followed_is_as_one_that_is_not_there(tmp_path, images):
    (tmp_path / "loop.jpg").symlink_to(tmp_path / "loop.jpg")
    caption = "a dog that runs " * 40  # shifted into the column of paths
    source = opened(
        write_json(tmp_path / "ann.json", [{"image": name, "caption": "x"} for name in ("loop.jpg", caption)])
    )
    for i in range(2):
        with pytest.raises(AbsentImage):
            source[i]


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM])
def test_image_that_may_not_be_read_is_left_out(tmp_path, images, monkeypatch, number):
    source = opened(write_json(tmp_path / "ann.json", [{"image": "images/one.jpg", "caption": "x"}]))
    monkeypatch.setattr(Path, "read_bytes", failing(number))
    with pytest.raises(AbsentImage, match=r"one.jpg \("):
        source[0]


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ENOTCONN])
def test_disk_that_cannot_be_read_stops_rather_than_empty_a_collection(tmp_path, images, monkeypatch, number):
    source = opened(write_json(tmp_path / "ann.json", [{"image": "images/one.jpg", "caption": "x"}]))
    monkeypatch.setattr(Path, "read_bytes", failing(number))
    with pytest.raises(UserError, match=r"one.jpg' cannot be read: "):
        source[0]


def test_list_that_may_not_be_read_is_refused(tmp_path, monkeypatch):
    uri = write_json(tmp_path / "ann.json", [])
    monkeypatch.setattr(Path, "read_bytes", failing(errno.EACCES))
    assert refusal(uri).endswith("ann.json' cannot be read (Permission denied)")


def failing(number: int):
    def read_bytes(path):
        raise OSError(number, os.strerror(number), str(path))

    return read_bytes


def test_half_a_surrogate_pair_does_not_stop_a_collection(tmp_path, images):
    (tmp_path / "ann.json").write_text('[{"image": "images/one.jpg", "caption": "a \\ud83d dog"}]')
    assert said(opened(f"json:{tmp_path}/ann.json")) == {"images/one.jpg": ["a ? dog"]}


def test_json_of_another_layout_is_refused(tmp_path):
    path = tmp_path / "a.json"
    assert "ALBEF" in refusal(write_json(path, {"data": []}))
    assert "'caption' is missing" in refusal(write_json(path, [{"image": "a.jpg"}]))
    assert "is not text" in refusal(write_json(path, [{"image": "a.jpg", "caption": {"raw": "a"}}]))
    assert "has no splits" in refusal(write_json(path, [{"image": "a.jpg", "caption": "a"}]) + "?split=train")
    assert "is a URL; fetch" in refusal(write_json(path, [{"image": "http://a.org/a.jpg", "caption": "a"}]))
    assert "image_root='/none' is not a directory" in refusal(write_json(path, []) + "?image_root=/none")
    path.write_text("{")
    assert "is not JSON" in refusal(f"json:{path}")


def test_tables_gather_the_captions_of_an_image(tmp_path, images):
    lines = ["image,caption,n", 'images/one.jpg,"a dog, running",1', "images/two.jpg,null,2", "images/one.jpg,12,3"]
    (tmp_path / "pairs.csv").write_text("\n".join(lines) + "\n")
    expected = {"images/one.jpg": ["a dog, running", "12"], "images/two.jpg": ["null"]}
    assert said(opened(f"table:{tmp_path}/pairs.csv")) == expected


def test_columns_of_tables_have_the_names_that_are_given(tmp_path, images):
    (tmp_path / "pairs.tsv").write_text('"quoted" start\tone.jpg\tx\nsecond\ttwo.jpg\ty\n')
    uri = (
        f"table:{tmp_path}/pairs.tsv?columns=text,path,key&image=path&caption=text&id=key&image_root={tmp_path}/images"
    )
    assert said(opened(uri)) == {"x": ['"quoted" start'], "y": ["second"]}


def test_parquet_may_hold_lists_of_captions(tmp_path, images):
    table = pa.table({"image": ["images/one.jpg", "images/two.jpg"], "caption": [["a", "b"], []], "id": [1, 2]})
    parquet.write_table(table, tmp_path / "pairs.parquet")
    assert said(opened(f"table:{tmp_path}/pairs.parquet?id=id")) == {"1": ["a", "b"], "2": []}


def test_wrong_tables_are_refused(tmp_path):
    (tmp_path / "a.csv").write_text("path,text\na.jpg,a\n")
    assert "path, text" in refusal(f"table:{tmp_path}/a.csv")
    (tmp_path / "b.csv").write_text("image,caption\n,a\n")
    assert "no row that can be used with the columns image, caption (no_path: 1)" in refusal(f"table:{tmp_path}/b.csv")
    (tmp_path / "c.csv").write_text("image,caption\na.jpg\n")
    assert "no row that can be used with the columns image, caption (malformed: 1)" in refusal(
        f"table:{tmp_path}/c.csv"
    )
    (tmp_path / "d.parquet").write_bytes(b"no parquet")
    assert "cannot be read" in refusal(f"table:{tmp_path}/d.parquet")
    (tmp_path / "e.xlsx").write_bytes(b"")
    assert "not one of .csv, .tsv, .parquet" in refusal(f"table:{tmp_path}/e.xlsx")
    parquet.write_table(pa.table({"url": ["a"], "caption": ["b"]}), tmp_path / "f.parquet")
    assert "it has url, caption" in refusal(f"table:{tmp_path}/f.parquet")


def fetched(key: str, image: bytes, caption: str) -> dict[str, bytes]:
    described = {"caption": caption, "url": f"http://a.org/{key}", "key": key, "status": "success", "width": 40}
    return {f"{key}.jpg": image, f"{key}.json": json.dumps(described).encode(), f"{key}.txt": caption.encode()}


def test_tar_files_of_img2dataset_are_read_at_random(tmp_path, images):
    data = list(images.values())
    write_tar(tmp_path / "00000.tar", fetched("000000000", data[0], "zéro") | fetched("000000002", data[1], "two"))
    only_json = {"000010001.json": b'{"caption": "ten thousand"}', "000010001.png": data[2]}
    write_tar(tmp_path / "00001.tar", only_json | {"000010002.txt": b"lost", "000010002.json": b"{}", "notes.md": b""})
    source = opened(f"webdataset:{tmp_path}/{{00000..00001}}.tar")
    assert [source.example_id(i) for i in range(4)] == ["000000000", "000000002", "000010001", "000010002"]
    assert source[2] == {"image": data[2], "captions": ["ten thousand"], "image_id": "000010001"}
    assert source[0] == {"image": data[0], "captions": ["zéro"], "image_id": "000000000"}
    with pytest.raises(AbsentImage, match=r"000010002 in .*00001.tar has no image"):
        source[3]
    assert len(opened(f"webdataset:{tmp_path}/*.tar")) == 4


def test_tar_file_that_vanishes_is_refused_by_its_name(tmp_path, images):
    write_tar(tmp_path / "a.tar", fetched("0", images["one.jpg"], "one"))
    source = opened(f"webdataset:{tmp_path}/a.tar")
    (tmp_path / "a.tar").unlink()
    with pytest.raises(UserError, match=r"a\.tar' cannot be read: No such file"):
        source[0]


def test_long_names_in_tar_files_do_not_shift_what_is_read(tmp_path, images):
    long = "d" * 120 + "/" + "k" * 120
    data = list(images.values())
    write_tar(tmp_path / "a.tar", {f"{long}.jpg": data[0], f"{long}.txt": b"long"} | fetched("short", data[1], "short"))
    source = opened(f"webdataset:{tmp_path}/a.tar")
    assert said(source) == {long: ["long"], "short": ["short"]} and source[1]["image"] == data[1]


def test_damaged_tar_files_are_refused(tmp_path, images):
    write_tar(tmp_path / "a.tar", fetched("0", list(images.values())[0], "a"))
    whole = (tmp_path / "a.tar").read_bytes()
    for size in (700, 1100):
        (tmp_path / "a.tar").write_bytes(whole[:size])
        assert "cannot be read as a tar file: unexpected end" in refusal(f"webdataset:{tmp_path}/a.tar")
    (tmp_path / "a.tar").write_bytes(b"x" * 2000)
    assert "cannot be read as a tar file" in refusal(f"webdataset:{tmp_path}/a.tar")
    assert "None.tar" in refusal(f"webdataset:{tmp_path}/None.tar")
    assert "no file matches" in refusal(f"webdataset:{tmp_path}/b*.tar")
    write_tar(tmp_path / "empty.tar", {"notes.md": b""})
    assert "holds an example" in refusal(f"webdataset:{tmp_path}/empty.tar")


def test_braces_stand_for_ranges_and_lists():
    assert list(expand_braces("a{08..10}.tar")) == ["a08.tar", "a09.tar", "a10.tar"]
    assert list(expand_braces("{x,y}{1..2}")) == ["x1", "x2", "y1", "y2"]
    assert list(expand_braces("plain")) == ["plain"]
    with pytest.raises(UserError, match="neither a range"):
        list(expand_braces("{a}"))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    data_dir = tmp_path_factory.mktemp("prepared")
    return write_dataset(shapes.collection(train=520, val=4, test=4), name="shapes", data_dir=data_dir)


def test_prepared_directory_is_read_by_its_path(prepared):
    by_name = open_source("tfds:shapes:val", data_dir=str(prepared.parent.parent))
    for directory in (prepared, prepared.parent):
        source = opened(f"arrayrecord:{directory}/val")
        assert [source[i] for i in range(4)] == [by_name[i] for i in range(4)]
    assert len(opened(f"arrayrecord:{prepared}/train[:10%]")) == 52


def test_array_records_are_read_by_pattern_in_the_order_of_their_names(prepared):
    source = open_source(f"arrayrecord:{prepared}/shapes-train.array_record*", data_dir="")
    assert [source.example_id(i) for i in (0, 511, 512, 519)] == [
        f"shapes-train-{i:06d}" for i in (0, 511, 512, 519)
    ]  # fmt: skip


def test_ids_are_those_of_the_records_in_any_slice(prepared):
    data_dir = str(prepared.parent.parent)
    for split in ("train[500:515]", "train[510:]", "val+train[511:514]"):
        source = open_source(f"tfds:shapes:{split}", data_dir=data_dir)
        ids = [source.example_id(i) for i in range(len(source))]
        assert ids == [source[i]["image_id"] for i in range(len(source))] and len(ids) > 3


def test_ids_are_read_without_the_images(prepared, tmp_path):
    copy = tmp_path / "1.0.0"
    copy.mkdir()
    for file in prepared.iterdir():
        (copy / file.name).write_bytes(b"" if "array_record" in file.name else file.read_bytes())
    source = open_source(f"arrayrecord:{copy}/train", data_dir="")
    assert source.example_id(515) == "shapes-train-000515"
    with pytest.raises(Exception, match="(?i)record|file|footer"):
        source[515]


def test_dataset_that_was_copied_in_part_is_refused(prepared, tmp_path):
    copy = tmp_path / "1.0.0"
    copy.mkdir()
    for file in prepared.iterdir():
        if "00001-of-00002" not in file.name:
            (copy / file.name).write_bytes(file.read_bytes())
    assert "lacks 1 files of split train, the first" in refusal(f"arrayrecord:{copy}/train")
    assert len(open_source(f"arrayrecord:{copy}/train[:512]", data_dir="")) == 512


def test_files_that_hold_something_else_are_refused(tmp_path):
    assert "no file matches" in refusal(f"arrayrecord:{tmp_path}/x.array_record*")
    (tmp_path / "x.array_record").write_bytes(b"x" * 1000)
    assert "not of readable ArrayRecord files" in refusal(f"arrayrecord:{tmp_path}/x.array_record")
    for record in (b"\xff\xff\xff", b""):
        writer = ArrayRecordWriter(f"{tmp_path}/y.array_record", "group_size:1")
        writer.write(record)
        writer.close()
        assert "are not examples of image, captions, image_id" in refusal(f"arrayrecord:{tmp_path}/y.array_record")
