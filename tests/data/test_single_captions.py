"""Epochs in which every caption comes once, not every image."""

import json
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from examples import ListSource, encoded, picture, write_tar
from tiny import recipe

from mvlm_jax.data.augmentation import Augment
from mvlm_jax.data.collection import Collection, PairCodec
from mvlm_jax.data.formats.records import ids_file
from mvlm_jax.data.images import ImageSpec
from mvlm_jax.data.mixtures import Component, Mixture
from mvlm_jax.data.pipeline import PairExamples
from mvlm_jax.data.single_captions import by_caption, caption_counts
from mvlm_jax.data.sources import open_source
from mvlm_jax.data.writing.dataset import write_dataset
from mvlm_jax.data.writing.shards import ImageChecks, finished_report, report_path, write_shard
from mvlm_jax.tasks.pretrain import Pretrain

SPEC = ImageSpec(size=8, max_pixels=10_000)
PLAIN = Augment(min_scale=1.0, flip=False, operations=0, magnitude=0)


def source_of(counts, *, prefix="image", broken=()):
    """Images with so many captions each."""
    return ListSource(
        [
            {
                "image": b"not an image" if i in broken else encoded(picture(seed=i)),
                "captions": [f"{prefix} {i}, caption {nth}" for nth in range(count)],
                "image_id": f"{prefix}-{i}",
            }
            for i, count in enumerate(counts)
        ]
    )


def pairs(mixture, indices):
    examples = PairExamples(mixture=mixture, seed=3, spec=SPEC, augment=PLAIN)
    return [examples[index] for index in indices]


def test_every_caption_comes_once_in_an_epoch_with_its_image():
    source = source_of([3, 1, 2])
    mixture = by_caption(Mixture([Component(source)]))
    assert mixture.epoch_size == 6
    for epoch in range(3):
        made = pairs(mixture, range(6 * epoch, 6 * epoch + 6))
        assert sorted(pair.caption for pair in made) == sorted(sum((e["captions"] for e in source.examples), []))
        # All captions of an image are of one image: positives of each other, never negatives.
        assert Counter(pair.image_id for pair in made) == {"image-0": 3, "image-1": 1, "image-2": 2}
        assert all(pair.caption.startswith(pair.image_id.replace("-", " ")) for pair in made)
    assert [pair.caption for pair in pairs(mixture, range(6))] != [
        pair.caption for pair in pairs(mixture, range(6, 12))
    ]


def test_parts_and_weights_count_captions():
    many, few = source_of([4, 2, 4]), source_of([1, 1], prefix="other")
    part = np.array([1, 2], np.int32)
    mixture = by_caption(Mixture([Component(many, weight=2.0, records=part), Component(few)]))
    assert mixture.epoch_size == 2 * 6 + 2
    seen = Counter(pair.caption for pair in pairs(mixture, range(14)))
    assert {caption: count for caption, count in seen.items() if caption.startswith("image")} == {
        f"image {image}, caption {nth}": 2 for image, count in ((1, 2), (2, 4)) for nth in range(count)
    }
    assert [identity for identity, _, _, _ in pairs(mixture, range(14)) if identity == "1/other-0"] == ["1/other-0"]


def test_what_cannot_be_used_is_stepped_over_and_counted():
    source = source_of([2, 3, 0, 1], broken=(1,))
    mixture = by_caption(Mixture([Component(source)]))
    assert mixture.epoch_size == 2 + 3 + 1 + 1
    made = pairs(mixture, range(7))
    assert {pair.image_id for pair in made} == {"image-0", "image-3"} and sum(pair.skipped for pair in made) >= 4


def test_captions_that_went_since_they_were_counted_are_stepped_over():
    source = source_of([3, 1])
    mixture = by_caption(Mixture([Component(source)]))
    del source.examples[0]["captions"][1:]
    assert {pair.caption for pair in pairs(mixture, range(4))} == {"image 0, caption 0", "image 1, caption 0"}


CAPTIONS = {"a": ["one", " ", "two"], "b": ["three"], "c": []}


@pytest.fixture
def published(tmp_path):
    """The same three images as each format has them; their files are gone, so that none can be read."""
    listed = [{"image": f"{name}.jpg", "caption": texts} for name, texts in CAPTIONS.items()]
    (tmp_path / "list.json").write_text(json.dumps(listed))
    members = {f"{name}.json": json.dumps({"caption": texts}).encode() for name, texts in CAPTIONS.items()}
    write_tar(tmp_path / "pairs.tar", members | {"d.json": b"{"})
    table = {
        "image": [{"bytes": b"no image", "path": name} for name in CAPTIONS],
        "caption": list(CAPTIONS.values()),
    }
    pa.parquet.write_table(pa.table(table), tmp_path / "pairs.parquet")
    return tmp_path


@pytest.mark.parametrize(
    ("uri", "counts"),
    [
        ("json:{}/list.json", [2, 1, 0]),
        ("table:{}/pairs.parquet", [2, 1, 0]),
        ("webdataset:{}/pairs.tar", [2, 1, 0, 0]),
    ],
)
def test_captions_are_counted_without_an_image(published, uri, counts):
    source = open_source(uri.format(published), data_dir="")
    assert source.caption_counts().tolist() == counts
    assert caption_counts(source, np.array([1, 0], np.int32)).tolist() == counts[1::-1]


def test_a_prepared_dataset_knows_how_many_captions_each_image_has(tmp_path):
    source = source_of([3, 1, 2, 5])
    directory = write_dataset(Collection({"train": source}, source="mine"), name="mine", data_dir=tmp_path)
    sliced = open_source("tfds:mine:train[1:]", data_dir=str(tmp_path))
    assert sliced.caption_counts().tolist() == [1, 2, 5]
    # Of one that an earlier version prepared, every record is read.
    batch = pa.record_batch({"id": pa.array([sliced.example_id(0)] * 4, pa.large_string())})
    with pa.OSFile(str(ids_file(directory, "train")), "wb") as file, pa.ipc.new_file(file, batch.schema) as writer:
        writer.write_batch(batch)
    earlier = open_source("tfds:mine:train", data_dir=str(tmp_path))
    assert earlier.caption_counts() is None
    assert caption_counts(earlier, np.arange(4, dtype=np.int32)).tolist() == [3, 1, 2, 5]


def test_a_shard_that_an_earlier_version_wrote_is_written_again(tmp_path):
    source, path = source_of([3, 1]), tmp_path / "shard"
    write_shard(source, range(2), path=path, codec=PairCodec(), checks=ImageChecks())
    report = finished_report(path)
    assert report is not None and report["captions"] == [3, 1]
    report_path(path).write_text(json.dumps(report | {"captions": 4}))
    assert finished_report(path) is None


@pytest.mark.parametrize(("epoch_of", "size"), [("image", 2), ("caption", 4)])
def test_the_config_says_what_an_epoch_is_of(tmp_path, epoch_of, size):
    captions = {"a.png": ["red", "blue", "green"], "b.png": ["white"]}
    for name in captions:
        (tmp_path / name).write_bytes(encoded(picture()))
    listed = [{"image": name, "caption": texts} for name, texts in captions.items()]
    (tmp_path / "list.json").write_text(json.dumps(listed))
    config = recipe("demo")
    config.data.train, config.data.epoch_of = f"json:{tmp_path / 'list.json'}", epoch_of
    assert Pretrain.mixture(config).epoch_size == size
    assert list(Pretrain.training_texts(config)) == ["red", "blue", "green", "white"]
