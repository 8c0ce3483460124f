"""Small collections in exactly the layouts that the large ones are published in."""

import json
import tarfile
from pathlib import Path

import pyarrow as pa
import pytest
from examples import encoded, picture
from pyarrow import parquet

from mvlm_jax.cli.prepare import prepare
from mvlm_jax.data.builders import fetched, karpathy, pairs4m, visual_genome
from mvlm_jax.data.builders.registry import PUBLISHED
from mvlm_jax.data.collection import Collection
from mvlm_jax.data.images import AbsentImage
from mvlm_jax.data.sources import open_source
from mvlm_jax.errors import UserError

COCO_IMAGES = (
    ("train2014", 9, "train"), ("val2014", 42, "restval"), ("val2014", 73, "val"), ("val2014", 74, "test"),
)  # fmt: skip


def photograph(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded(picture(seed=len(path.name)), "JPEG"))
    return path


def sentences(*texts: str) -> list[dict]:
    return [{"tokens": text.split(), "raw": text, "imgid": 0, "sentid": i} for i, text in enumerate(texts)]


def publish_coco(directory: Path) -> Path:
    images = []
    for number, (folder, identity, split) in enumerate(COCO_IMAGES):
        name = f"COCO_{folder}_{identity:012d}.jpg"
        photograph(directory / folder / name)
        images.append(
            {"filepath": folder, "sentids": [1, 2], "filename": name, "imgid": number, "split": split,
             "sentences": sentences(f"image {identity}", f"again {identity}"), "cocoid": identity}
        )  # fmt: skip
    (directory / "dataset_coco.json").write_text(json.dumps({"images": images, "dataset": "coco"}))
    return directory


def publish_flickr30k(directory: Path) -> Path:
    images = []
    for number, (identity, split) in enumerate([(1000092795, "train"), (10002456, "val"), (1007129816, "test")]):
        photograph(directory / "flickr30k-images" / f"{identity}.jpg")
        images.append(
            {"sentids": [number], "imgid": number, "sentences": sentences("Two men ."), "split": split,
             "filename": f"{identity}.jpg"}
        )  # fmt: skip
    directory.joinpath("dataset_flickr30k.json").write_text(json.dumps({"images": images, "dataset": "flickr30k"}))
    return directory


def publish_visual_genome(directory: Path) -> Path:
    """Image 1 is in COCO's training part, 2 and 5 held out by Karpathy, 3 in neither, 4 without any description."""
    folders = {1: "VG_100K_2", 2: "VG_100K", 3: "VG_100K", 4: "VG_100K_2", 5: "VG_100K"}
    coco, flickr = {1: 9, 2: 73, 3: None, 4: None, 5: 74}, {3: 10002456, 4: None}
    data, descriptions = [], []
    for identity, folder in folders.items():
        photograph(directory / folder / f"{identity}.jpg")
        data.append(
            {"width": 800, "url": f"https://cs.stanford.edu/people/rak248/{folder}/{identity}.jpg", "height": 600,
             "image_id": identity, "coco_id": coco[identity], "flickr_id": flickr.get(identity, 77)}
        )  # fmt: skip
        phrases = ["the clock is green", "a man ", f"region of {identity}", "a man"] if identity != 4 else []
        regions = [
            {"region_id": i, "width": 82, "height": 139, "image_id": identity, "phrase": phrase, "y": 57, "x": 421}
            for i, phrase in enumerate(phrases)
        ]
        descriptions.append({"regions": regions, "id": identity})
    (directory / "image_data.json").write_text(json.dumps(data))
    (directory / "region_descriptions.json").write_text(json.dumps(descriptions))
    return directory


def publish_sbu(directory: Path) -> Path:
    names = ["4385058960_b0f291553e.jpg", "148284120_a5a3a7a3a2.jpg", "gone_0000000000.jpg"]
    for name in names[:2]:
        photograph(directory / "images" / name)
    addresses = [f"http://static.flickr.com/2723/{name}" for name in names]
    (directory / "SBU_captioned_photo_dataset_urls.txt").write_text("\n".join(addresses) + "\n")
    captions = ["A wooden chair in the living room", "a man with | signs", "white horse near avebury"]
    (directory / "SBU_captioned_photo_dataset_captions.txt").write_text("\n".join(captions) + "\n")
    return directory


def publish_cc3m(directory: Path) -> Path:
    """As img2dataset --output_format=files leaves it; the second address could not be fetched."""
    photograph(directory / "00000" / "000000000.jpg")
    (directory / "00000" / "000000000.txt").write_text("a very typical bus station")
    (directory / "00000_stats.json").write_text("{}")
    columns = {
        "caption": ["a very typical bus station", "sierra looked stunning"], "url": ["http://a", "http://b"],
        "key": ["000000000", "000000001"], "status": ["success", "failed_to_download"],
        "error_message": [None, "HTTP Error 404: Not Found"], "width": [256, None], "height": [256, None],
    }  # fmt: skip
    parquet.write_table(pa.table(columns), directory / "00000.parquet")
    return directory


def publish_pairs4m(directory: Path) -> Path:
    for name, publish in PUBLISH.items():
        if name in pairs4m.PARTS:
            publish(directory / name)
    return directory


PUBLISH = {
    "coco": publish_coco,
    "flickr30k": publish_flickr30k,
    "visual_genome": publish_visual_genome,
    "sbu": publish_sbu,
    "cc3m": publish_cc3m,
    "pairs4m": publish_pairs4m,
}


def said(collection: Collection, split: str = "train") -> dict[str, list[str]]:
    """Captions by id, of images that are there."""
    source, found = collection.splits[split], {}
    for i in range(len(source)):
        try:
            found[source.example_id(i)] = source[i]["captions"]
        except AbsentImage:
            continue
    return found


def test_coco_has_karpathys_splits_and_its_own_ids(tmp_path):
    collection = karpathy.coco(publish_coco(tmp_path))
    assert said(collection) == {"9": ["image 9", "again 9"], "42": ["image 42", "again 42"]}
    assert list(said(collection, "val")) == ["73"] and list(said(collection, "test")) == ["74"]


def test_flickr30k_has_karpathys_splits(tmp_path):
    collection = karpathy.flickr30k(publish_flickr30k(tmp_path))
    ids = {split: list(said(collection, split)) for split in collection.splits}
    assert ids == {"train": ["1000092795"], "val": ["10002456"], "test": ["1007129816"]}


def with_coco_list(directory: Path) -> Path:
    publish_coco(directory / "coco")
    (directory / "dataset_coco.json").write_bytes((directory / "coco" / "dataset_coco.json").read_bytes())
    return directory


def test_visual_genome_leaves_out_what_coco_holds_out_and_says_each_sentence_once(tmp_path):
    collection = visual_genome.collection(with_coco_list(publish_visual_genome(tmp_path)))
    regions = {i: ["the clock is green", "a man", f"region of {i}"] for i in (1, 3)}
    assert said(collection) == {"1": regions[1], "3": regions[3], "4": []}
    assert collection.left_out["train"].as_dict() == {"held_out_in_coco": {"count": 2, "ids": ["2", "5"]}}


def test_visual_genome_leaves_out_what_flickr30k_holds_out_where_its_list_is_there(tmp_path):
    publish_flickr30k(with_coco_list(publish_visual_genome(tmp_path)))
    collection = visual_genome.collection(tmp_path)
    assert list(said(collection)) == ["1", "4"]
    assert collection.left_out["train"].counts == {"held_out_in_coco": 2, "held_out_in_flickr30k": 1}


def test_regions_of_no_image_are_counted_and_images_without_a_coco_id_are_not_held_out(tmp_path):
    with_coco_list(publish_visual_genome(tmp_path))
    regions = json.loads((tmp_path / "region_descriptions.json").read_text())
    (tmp_path / "region_descriptions.json").write_text(json.dumps([*regions, {"id": 99, "regions": []}]))
    content = json.loads((tmp_path / "dataset_coco.json").read_text())
    content["images"].append({**content["images"][2], "cocoid": None})
    (tmp_path / "dataset_coco.json").write_text(json.dumps(content))
    collection = visual_genome.collection(tmp_path)
    assert list(said(collection)) == ["1", "3", "4"]
    assert collection.left_out["train"].as_dict()["no_such_image"] == {"count": 1, "ids": ["99"]}


def test_visual_genome_without_coco_list_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"no dataset_coco.json, which Visual Genome, so that COCO's held-out"):
        visual_genome.collection(publish_visual_genome(tmp_path))


def test_sbu_pairs_lines_of_its_two_lists(tmp_path):
    collection = fetched.sbu(publish_sbu(tmp_path))
    assert said(collection) == {
        "4385058960_b0f291553e": ["A wooden chair in the living room"], "148284120_a5a3a7a3a2": ["a man with | signs"],
    }  # fmt: skip
    assert len(collection.splits["train"]) == 3
    (tmp_path / fetched.SBU_CAPTIONS).write_text("only one\n")
    with pytest.raises(UserError, match="has 3 lines but .* 1; they belong together"):
        fetched.sbu(tmp_path)


def test_cc3m_is_read_from_directories_and_from_tar_files(tmp_path):
    files = fetched.cc3m(publish_cc3m(tmp_path / "files"))
    assert said(files) == {"000000000": ["a very typical bus station"]}
    assert len(files.splits["train"]) == 2

    for part in (tmp_path / "tars", tmp_path / "tars" / "val"):
        part.mkdir()
        with tarfile.open(part / "00000.tar", "w") as tar:
            for suffix in ("jpg", "txt"):
                tar.add(tmp_path / "files" / "00000" / f"000000000.{suffix}", f"000000000.{suffix}")
    tars = fetched.cc3m(tmp_path / "tars")
    assert said(tars) == said(tars, "val") == said(files)
    assert tars.splits["train"][0] == files.splits["train"][0]


def test_4m_pairs_join_four_collections_without_cocos_held_out_images(tmp_path):
    collection = pairs4m.collection(publish_pairs4m(tmp_path))
    assert list(said(collection)) == [
        "cc3m/000000000", "sbu/4385058960_b0f291553e", "sbu/148284120_a5a3a7a3a2",
        "visual_genome/1", "visual_genome/3", "visual_genome/4", "coco/9", "coco/42",
    ]  # fmt: skip
    assert said(collection)["coco/42"] == ["image 42", "again 42"]
    source = collection.splits["train"]
    assert source[len(source) - 1]["image_id"] == source.example_id(len(source) - 1) == "coco/42"
    assert collection.left_out["train"].counts == {"held_out_in_coco": 2}


def test_4m_pairs_are_prepared_and_what_is_missing_is_counted(tmp_path):
    publish_pairs4m(tmp_path / "downloads")
    prepare(dataset="pairs4m", sources=[str(tmp_path / "downloads")], data_dir=tmp_path / "data")
    source = open_source("tfds:pairs4m:train", data_dir=str(tmp_path / "data"))
    assert len(source) == 7
    manifest = json.loads((tmp_path / "data" / "pairs4m" / "1.0.0" / "manifest.json").read_text())
    assert {reason: out["ids"] for reason, out in manifest["splits"]["train"]["skipped"].items()} == {
        "absent": ["cc3m/000000001", "sbu/gone_0000000000"],
        "held_out_in_coco": ["visual_genome/2", "visual_genome/5"],
        "no_captions": ["visual_genome/4"],
    }


@pytest.mark.parametrize("name", sorted(PUBLISH))
def test_directory_without_a_part_is_refused_in_one_line(name, tmp_path):
    with pytest.raises(UserError, match="is not a directory|has no") as caught:
        PUBLISHED[name](tmp_path / "none")
    assert "\n" not in str(caught.value)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="has no"):
        PUBLISHED[name](tmp_path / "empty")


def test_published_files_of_another_layout_are_refused(tmp_path):
    with_coco_list(publish_visual_genome(tmp_path))
    (tmp_path / "image_data.json").write_text('[{"image_id": 1}]')
    with pytest.raises(UserError, match="are not as they were published: KeyError 'coco_id'"):
        visual_genome.collection(tmp_path)
    (tmp_path / "dataset_coco.json").write_text('{"images": [{"id": 3}]}')
    with pytest.raises(UserError, match="is not one of Karpathy's lists"):
        visual_genome.collection(tmp_path)


@pytest.mark.parametrize("name", ["coco", "flickr30k"])
def test_karpathy_list_whose_sentences_lack_a_field_is_refused(name, tmp_path):
    directory = PUBLISH[name](tmp_path)
    file = directory / f"dataset_{name}.json"
    content = json.loads(file.read_text())
    del content["images"][-1]["sentences"][0]["raw"]
    file.write_text(json.dumps(content))
    with pytest.raises(UserError, match=rf"dataset_{name}.json' has an entry of another layout: 'raw' is missing"):
        PUBLISHED[name](directory)
