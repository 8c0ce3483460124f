"""Prepared datasets of a store, as they are copied to this machine."""

import json
import shutil

import pytest

from mvlm_jax.data.sources import prepared_dir, resolved_data_dir
from mvlm_jax.errors import UserError
from mvlm_jax.stores.datasets import COPIED, prepared
from mvlm_jax.stores.objects import Store

DATA = "gs://bucket/data"


@pytest.fixture
def dataset(bucket):
    """An older version, and a newer one with two splits."""
    for version in ("1.9.0", "1.10.0"):
        folder = bucket / "data" / "shapes" / version
        folder.mkdir(parents=True)
        (folder / "dataset_info.json").write_text(json.dumps({"version": version}))
        for split in ("train", "val"):
            (folder / f"shapes-{split}.array_record-00000-of-00001").write_text(f"{split} of {version}")
    return folder


def files(directory):
    return sorted(path.name for path in directory.iterdir() if not path.name.startswith("."))


def test_the_shards_of_a_split_are_copied_once(dataset, monkeypatch):
    copy = prepared(DATA, "shapes", split="val[:1]")
    assert copy.name == "1.10.0"
    assert files(copy) == ["dataset_info.json", "shapes-val.array_record-00000-of-00001"]
    monkeypatch.setattr(Store, "read_all", lambda *_, **__: pytest.fail("it is copied again"))
    assert prepared_dir("shapes", data_dir=DATA, split="val") == copy
    assert prepared_dir("shapes", data_dir=DATA) == copy  # the description alone
    monkeypatch.undo()


def test_all_shards_are_copied_where_a_split_has_no_files_of_its_name(dataset):
    assert len(files(prepared(DATA, "shapes", split="all"))) == 3


def test_a_dataset_that_was_written_anew_is_copied_anew(dataset):
    prepared(DATA, "shapes", split="train")
    prepared(DATA, "shapes", split="val")
    (dataset / "dataset_info.json").write_text("{}")
    (dataset / "shapes-val.array_record-00000-of-00001").write_text("new")
    copy = prepared(DATA, "shapes", split="val")
    assert (copy / "shapes-val.array_record-00000-of-00001").read_text() == "new"
    assert set(json.loads((copy / COPIED).read_text())) == set(files(copy))
    assert "shapes-train.array_record-00000-of-00001" not in files(copy)


def test_a_copy_that_was_cut_short_is_made_whole(dataset):
    copy = prepared(DATA, "shapes", split="val")
    shard = copy / "shapes-val.array_record-00000-of-00001"
    shard.write_text("v")
    assert (prepared(DATA, "shapes", split="val") / shard.name).read_text() == "val of 1.10.0"


def test_a_dataset_that_is_not_there_is_refused(dataset):
    said = "dataset 'other' is not in gs://bucket/data; mvlm prepare --data_dir=gs://bucket/data writes it there"
    with pytest.raises(UserError, match=said):
        prepared_dir("other", data_dir=DATA)


def test_a_dataset_without_room_for_it_is_refused(dataset, monkeypatch):
    (dataset / "dataset_info.json").write_text(json.dumps({"splits": [{"name": "val", "numBytes": "5000000000"}]}))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(2e9, 1e9, 1e9))
    with pytest.raises(UserError, match=r"has 1\.0 GB left, and a copy of val needs 5\.0 GB; XDG_CACHE_HOME=DIR names"):
        prepared(DATA, "shapes", split="val")


def test_nothing_is_prepared_in_a_store():
    with pytest.raises(UserError, match="data_dir='gs://bucket/data' is not a local path; copy the files first"):
        resolved_data_dir(DATA)
