"""Files that end early or are malformed: what is broken is an error that says where, what is not used is counted."""

import gzip
import io
import json
import re
import struct
import tarfile
from pathlib import Path

import pyarrow as pa
import pytest
from array_record.python.array_record_module import ArrayRecordWriter
from examples import encoded, pair_source, picture, write_tar
from pyarrow import parquet

from mvlm_jax.cli import prepare as prepare_command
from mvlm_jax.data.builders import fetched
from mvlm_jax.data.collection import Collection
from mvlm_jax.data.formats.image_folder import read_class_names, read_templates
from mvlm_jax.data.formats.nlvr2 import open_nlvr2
from mvlm_jax.data.formats.snli_ve import open_snli_ve
from mvlm_jax.data.images import UnusableImage
from mvlm_jax.data.skipped import left_out_of
from mvlm_jax.data.sources import Source, open_source
from mvlm_jax.data.writing.dataset import read_manifest, write_dataset
from mvlm_jax.data.writing.shards import serialize
from mvlm_jax.errors import UserError

IMAGES = [encoded(picture(seed=seed), "JPEG") for seed in range(4)]


def pair(key: str, number: int) -> dict[str, bytes]:
    return {f"{key}.jpg": IMAGES[number], f"{key}.txt": f"caption {number}".encode()}


def members_tar(path: Path, members: list[tuple[str, bytes]]) -> None:
    """As `write_tar`, with names that come again."""
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def pairs_of(source: Source) -> list[tuple[int, list[str]]]:
    """Which image, with which captions."""
    return [(IMAGES.index(source[i]["image"]), source[i]["captions"]) for i in range(len(source))]


def ids_of(source: Source) -> list[str]:
    return [source.example_id(i) for i in range(len(source))]


def counted(source: Source) -> dict[str, list[str]]:
    return {reason: out["ids"] for reason, out in left_out_of(source).as_dict().items()}


def refusal(uri: str) -> str:
    with pytest.raises(UserError) as caught:
        open_source(uri, data_dir="")
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def tar(tmp_path):
    """Two pairs; its bytes, and where its headers begin."""
    path = tmp_path / "a.tar"
    write_tar(path, pair("0", 0) | pair("1", 1))
    with tarfile.open(path) as opened:
        return path, path.read_bytes(), [member.offset for member in opened]


def test_a_tar_file_that_is_cut_anywhere_is_refused_with_its_length_or_whole(tar):
    path, whole, headers = tar
    closing = headers[-1] + 1024  # a header, and a caption in a block of its own
    for length in range(0, len(whole), 64):
        path.write_bytes(whole[:length])
        if length > closing:
            assert len(open_source(f"webdataset:{path}", data_dir="")) == 2
        else:
            message = refusal(f"webdataset:{path}")
            assert repr(str(path)) in message and re.search(r"(unexpected end|file|header) at byte \d+", message)


def test_a_damaged_header_is_refused_with_its_place(tar):
    path, whole, headers = tar
    for place in range(headers[2], headers[2] + 500, 11):
        damaged = bytearray(whole)
        damaged[place] ^= 0xFF
        path.write_bytes(damaged)
        assert f"there is no header at byte {headers[2]}" in refusal(f"webdataset:{path}")
    path.write_bytes(whole + b"rest")
    assert f"unexpected end at byte {len(whole) + 4}" in refusal(f"webdataset:{path}")


def test_a_tar_file_that_is_cut_behind_a_long_name_is_refused(tmp_path):
    write_tar(tmp_path / "a.tar", pair("0", 0) | {"k" * 200 + ".jpg": IMAGES[1]})
    whole = (tmp_path / "a.tar").read_bytes()
    with tarfile.open(tmp_path / "a.tar") as opened:
        begin = [member.offset for member in opened][2]
    for length in (512, 1024, 1100):
        (tmp_path / "a.tar").write_bytes(whole[: begin + length])
        assert f"header, after byte {begin}" in refusal(f"webdataset:{tmp_path}/a.tar")


def test_compressed_files_say_so(tar, tmp_path):
    path, whole, _ = tar
    path.write_bytes(gzip.compress(whole))
    assert "compressed by gzip, so unpack it first" in refusal(f"webdataset:{path}")
    (tmp_path / "a.json").write_bytes(gzip.compress(b"[]"))
    assert "compressed by gzip" in refusal(f"json:{tmp_path}/a.json")
    (tmp_path / "a.csv").write_bytes(gzip.compress(b"image,caption\na.jpg,a\n"))
    assert "compressed by gzip" in refusal(f"table:{tmp_path}/a.csv")


def test_the_doctor_and_prepare_refuse_what_is_cut(tar, tmp_path, capsys):
    path, whole, headers = tar
    path.write_bytes(whole[: headers[2] + 100])
    for mode in ([], ["--check"]):
        arguments = [*mode, "--dataset=cut", f"--source=webdataset:{path}", f"--data_dir={tmp_path}/data"]
        assert prepare_command.run(arguments) == 2
        assert f"unexpected end at byte {headers[2] + 100}, within the header" in capsys.readouterr().err


def test_tar_files_one_behind_the_other_are_read_as_all_of_them(tmp_path):
    write_tar(tmp_path / "a.tar", pair("0", 0) | pair("1", 1))
    write_tar(tmp_path / "b.tar", pair("0", 2) | pair("3", 3))
    (tmp_path / "both.tar").write_bytes((tmp_path / "a.tar").read_bytes() + (tmp_path / "b.tar").read_bytes())
    source = open_source(f"webdataset:{tmp_path}/both.tar", data_dir="")
    assert pairs_of(source) == [(number, [f"caption {number}"]) for number in range(4)]
    assert ids_of(source) == ["0", "1", "both/0", "3"]


def test_a_key_that_comes_again_is_another_example(tmp_path):
    members_tar(tmp_path / "a.tar", [*pair("0", 0).items(), *pair("1", 1).items(), *pair("0", 2).items()])
    source = open_source(f"webdataset:{tmp_path}/a.tar", data_dir="")
    assert pairs_of(source) == [(number, [f"caption {number}"]) for number in range(3)]
    assert ids_of(source) == ["0", "1", "a/0"] and not counted(source)


def test_members_of_one_example_need_not_stand_together(tmp_path):
    members_tar(tmp_path / "a.tar", sorted((pair("0", 0) | pair("1", 1)).items(), key=lambda member: member[0][1:]))
    assert pairs_of(open_source(f"webdataset:{tmp_path}/a.tar", data_dir="")) == [
        (0, ["caption 0"]),
        (1, ["caption 1"]),
    ]


def test_members_that_are_not_used_are_counted(tmp_path):
    members = [
        *pair("0", 0).items(),
        ("0.txt", b"again"),
        ("0.png", IMAGES[1]),
        ("1.heic", b"x"),
        ("a.b.jpg", IMAGES[2]),
    ]
    members_tar(tmp_path / "a.tar", members)
    with tarfile.open(tmp_path / "a.tar", "a") as tar:
        link = tarfile.TarInfo("2.jpg")
        link.type, link.linkname = tarfile.LNKTYPE, "0.jpg"
        tar.addfile(link)
    source = open_source(f"webdataset:{tmp_path}/a.tar", data_dir="")
    assert pairs_of(source) == [(0, ["caption 0"])]
    assert counted(source) == {
        "link_member": ["2.jpg"],
        "repeated_member": ["0.txt", "0.png"],
        "unused_member": ["1.heic", "a.b.jpg"],
    }


def test_what_is_left_out_of_a_source_stands_in_the_manifest_and_stops_the_doctor(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where the page goes
    members_tar(tmp_path / "a.tar", [*pair("0", 0).items(), ("0.png", IMAGES[1])])
    arguments = ["--dataset=mine", f"--source=webdataset:{tmp_path}/a.tar", f"--data_dir={tmp_path}"]
    assert prepare_command.run(arguments) == 0
    assert "left out, repeated_member: 1 (0.png)" in capsys.readouterr().out
    skipped = read_manifest(tmp_path / "mine" / "1.0.0")["splits"]["train"]["skipped"]
    assert skipped == {"repeated_member": {"count": 1, "ids": ["0.png"]}}
    assert prepare_command.run(["--check", "--policy=unread", *arguments]) == 1
    assert "unread: 1 (repeated_member: 1), which stops" in capsys.readouterr().out


def test_a_tar_file_that_became_shorter_is_no_shorter_image(tar):
    path, whole, headers = tar
    source = open_source(f"webdataset:{path}", data_dir="")
    path.write_bytes(whole[: headers[2] + 600])
    with pytest.raises(UserError, match=f"ends at byte {headers[2] + 600}; it was cut off since it was opened"):
        source[1]


@pytest.fixture
def images(tmp_path):
    for number, image in enumerate(IMAGES):
        (tmp_path / f"{number}.jpg").write_bytes(image)
    return tmp_path


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('image,caption\n0.jpg,"a dog\n1.jpg,two\n', "from line 2 on: a quote is not closed"),
        ('image,caption\n0.jpg,x\n1.jpg,"a dog\n2.jpg,"two"\n', "from line 3 on: ',' expected"),
        ("image,caption\n0.jpg,one\n1.jp", "a.csv' ends within line 3 of a.csv: it was cut off"),
        ("", "it is empty"),
    ],
)
def test_a_table_that_is_broken_is_refused_with_its_line(images, text, message):
    (images / "a.csv").write_text(text)
    assert message in refusal(f"table:{images}/a.csv")


def test_rows_that_cannot_be_used_are_counted_by_line(images):
    rows = [
        b"image,caption",
        b"0.jpg,one",
        b"1.jpg",
        b"1.jpg,two, and more",
        b"",
        b",lost",
        b"2.jpg,caf\xe9",
        b"3.jpg,ok",
    ]
    (images / "a.csv").write_bytes(b"\n".join(rows))
    source = open_source(f"table:{images}/a.csv", data_dir="")
    assert pairs_of(source) == [(0, ["one"]), (3, ["ok"])]
    lines = {"malformed": (3, 4), "no_path": (6,), "not_utf8": (7,)}
    assert counted(source) == {reason: [f"line {n} of a.csv" for n in numbers] for reason, numbers in lines.items()}


def test_a_tsv_line_without_its_tab_is_counted_and_quotes_mean_nothing(images):
    (images / "a.tsv").write_text('image\tcaption\n0.jpg one\n1.jpg\t"two\n')
    source = open_source(f"table:{images}/a.tsv", data_dir="")
    assert pairs_of(source) == [(1, ['"two'])] and counted(source) == {"malformed": ["line 2 of a.tsv"]}


def test_entries_of_lists_without_a_path_are_counted(images):
    entries = [{"image": None, "caption": "a"}, {"image": "1.jpg", "caption": "b"}, {"image": "", "caption": "c"}]
    (images / "a.json").write_text(json.dumps(entries))
    source = open_source(f"json:{images}/a.json", data_dir="")
    assert pairs_of(source) == [(1, ["b"])] and counted(source) == {"no_path": ["entry 0", "entry 2"]}


def test_captions_of_no_image_are_counted(images):
    content = {
        "images": [{"id": 1, "file_name": "1.jpg"}],
        "annotations": [{"image_id": number, "caption": f"of {number}"} for number in (1, 2, None)],
    }
    (images / "a.json").write_text(json.dumps(content))
    source = open_source(f"json:{images}/a.json", data_dir="")
    assert pairs_of(source) == [(1, ["of 1"])]
    assert counted(source) == {"no_such_image": ["annotation 1", "annotation 2"]}


def test_json_that_is_cut_is_refused_with_its_place(images):
    whole = '[{"image": "0.jpg", "caption": "a"},\n{"image": "1.jpg", "caption": "b"}]'
    for length in range(len(whole)):
        (images / "a.json").write_text(whole[:length])
        assert re.search(r"is not JSON: .* line \d column \d+ \(char \d+\)", refusal(f"json:{images}/a.json"))
    (images / "a.json").write_text('[{"image": "0.jpg", "caption": "a"},\n{"image": "1')
    assert "is not JSON: Unterminated string starting at: line 2 column 11 (char 47)" in refusal(
        f"json:{images}/a.json"
    )


def test_parquet_whose_text_is_none_is_refused_by_its_name(images):
    table = pa.table({"image": ["0.jpg"], "caption": [b"caf\xe9"]})
    table = pa.table([table["image"], pa.Array.from_buffers(pa.string(), 1, table["caption"].chunk(0).buffers())],
                     names=table.column_names)  # fmt: skip
    parquet.write_table(table, images / "a.parquet")
    assert "a.parquet' cannot be read with the columns image, caption: 'utf-8' codec" in refusal(
        f"table:{images}/a.parquet"
    )


def test_parquet_that_is_cut_is_refused_by_its_name(images):
    parquet.write_table(pa.table({"image": ["0.jpg"], "caption": ["a"]}), images / "a.parquet")
    (images / "a.parquet").write_bytes((images / "a.parquet").read_bytes()[:-10])
    assert "a.parquet' cannot be read with the columns image: " in refusal(f"table:{images}/a.parquet")


@pytest.mark.parametrize("part", [0, 0.5, 0.95])
def test_a_prepared_file_that_is_cut_is_no_heap_of_damaged_records(tmp_path, part):
    directory = write_dataset(Collection({"train": pair_source(30)}, "memory"), name="mine", data_dir=tmp_path)
    (file,) = directory.glob("*.array_record-*")
    whole = file.read_bytes()
    file.write_bytes(whole[: int(part * len(whole))])
    source = open_source("tfds:mine:train", data_dir=str(tmp_path))
    with pytest.raises(
        UserError, match=rf"{file.name}' is cut off at byte {int(part * len(whole))}, or is no ArrayRecord"
    ):
        source[0]
    assert f"{file.name}' is cut off at byte" in refusal(f"arrayrecord:{directory}/*.array_record*")


def test_a_prepared_file_with_fewer_records_than_were_written_is_refused(tmp_path):
    directory = write_dataset(Collection({"train": pair_source(3)}, "memory"), name="mine", data_dir=tmp_path)
    (file,) = directory.glob("*.array_record-*")
    writer = ArrayRecordWriter(str(file), "group_size:1")
    writer.write(serialize({"image": [IMAGES[0]], "captions": [b"a"], "image_id": [b"image-0"]}))
    writer.close()
    source = open_source("tfds:mine:train", data_dir=str(tmp_path))
    with pytest.raises(UserError, match="holds 1 records where 3 were written; copy or prepare it again"):
        source[2]


def test_ids_that_are_cut_are_refused(tmp_path):
    directory = write_dataset(Collection({"train": pair_source(3)}, "memory"), name="mine", data_dir=tmp_path)
    ids = directory / "ids-train.arrow"
    whole = ids.read_bytes()
    ends = struct.pack("<4q", 0, 7, 14, 21)  # of the three ids, in bytes
    assert ends in whole
    far = struct.pack("<4q", 0, 2**40, 14, 21)
    for damaged in (whole[:100], whole.replace(ends, far), whole.replace(b"image-1", b"image\xff1")):
        ids.write_bytes(damaged)
        with pytest.raises(UserError, match=r"ids-train.arrow' is cut off or damaged: "):
            open_source("tfds:mine:train", data_dir=str(tmp_path)).example_id(0)


def test_lines_of_json_that_are_cut_are_refused(tmp_path):
    (tmp_path / "dev.json").write_text('{"identifier": "dev-1-0-1", "sentence": "x", "la')
    with pytest.raises(UserError, match="line 1 of .*dev.json' is not JSON"):
        open_nlvr2(tmp_path, "dev")


def test_hypotheses_without_a_gold_label_are_counted_and_missing_ones_refused(tmp_path):
    line = {"Flickr30K_ID": "1", "gold_label": "-", "sentence2": "a", "pairID": "p"}
    file = tmp_path / "snli_ve_dev.jsonl"
    file.write_text(json.dumps(line) + "\n" + json.dumps({**line, "gold_label": "neutral"}) + "\n")
    assert counted(open_snli_ve(tmp_path, "dev")) == {"no_gold_label": ["p"]}
    file.write_text(json.dumps({**line, "sentence2": None}))
    with pytest.raises(UserError, match="not as it was published: ValueError sentence2 is None"):
        open_snli_ve(tmp_path, "dev")


def test_parts_that_img2dataset_did_not_finish_are_refused(tmp_path):
    parquet.write_table(pa.table({"key": ["0"], "caption": ["a"]}), tmp_path / "00000.parquet")
    for name in ("00000", "00001"):
        (tmp_path / name).mkdir()
    with pytest.raises(UserError, match=r"lacks 1 files .* the first 00001.parquet; let it finish"):
        fetched.open_fetched(tmp_path)
    write_tar(tmp_path / "00002.tar", pair("0", 0))
    with pytest.raises(UserError, match=r"lacks 1 files .* the first 00000.tar; let it finish"):
        fetched.open_fetched(tmp_path)


def test_captions_are_read_from_json_and_without_byte_order_marks(tmp_path):
    members = {
        "0.jpg": IMAGES[0], "0.json": b'{"caption": ["one", "two"]}',
        "1.jpg": IMAGES[1], "1.txt": b"\xef\xbb\xbfeins",
        "2.jpg": IMAGES[2], "2.txt": "zwei".encode("utf-16"),
        "3.jpg": IMAGES[3], "3.json": b'\xef\xbb\xbf{"caption": 3}',
    }  # fmt: skip
    write_tar(tmp_path / "a.tar", members)
    source = open_source(f"webdataset:{tmp_path}/a.tar", data_dir="")
    assert [captions for _, captions in pairs_of(source)] == [["one", "two"], ["eins"], ["zwei"], ["3"]]


def test_a_caption_in_broken_json_is_one_example_that_cannot_be_used(tmp_path):
    write_tar(tmp_path / "a.tar", pair("0", 0) | {"1.jpg": IMAGES[1], "1.json": b'{"caption": "a do'})
    source = open_source(f"webdataset:{tmp_path}/a.tar", data_dir="")
    with pytest.raises(UnusableImage, match=r"malformed_json: 1.json: Unterminated string"):
        source[1]
    assert source[0]["captions"] == ["caption 0"]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_byte_order_marks_are_part_of_no_list(tmp_path, encoding):
    (tmp_path / "0.jpg").write_bytes(IMAGES[0])
    (tmp_path / "a.csv").write_text("image,caption\n0.jpg,é\n", encoding=encoding)
    (tmp_path / "a.json").write_text('[{"image": "0.jpg", "caption": "é"}]', encoding=encoding)
    for uri in (f"table:{tmp_path}/a.csv", f"json:{tmp_path}/a.json"):
        assert pairs_of(open_source(uri, data_dir="")) == [(0, ["é"])]
    (tmp_path / "names").write_text("a\tA\nb\tB\n", encoding=encoding)
    assert read_class_names(tmp_path / "names") == {"a": "A", "b": "B"}
    (tmp_path / "prompts").write_text("{} outside\n", encoding=encoding)
    assert read_templates(tmp_path / "prompts") == ["{} outside"]
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.jpg").write_bytes(IMAGES[0])
    (tmp_path / fetched.SBU_URLS).write_text("http://a.org/a.jpg\nhttp://a.org/\n", encoding=encoding)
    (tmp_path / fetched.SBU_CAPTIONS).write_text("a chair\nlost\n", encoding=encoding)
    source = fetched.sbu(tmp_path).splits["train"]
    assert pairs_of(source) == [(0, ["a chair"])] and counted(source) == {"no_path": ["line 2"]}
