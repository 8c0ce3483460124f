"""Tar files in a store, read by ranges of bytes; the store is fsspec's own, in memory."""

import io
import pickle
import tarfile

import fsspec
import pytest
from examples import encoded, picture
from fsspec.implementations.memory import MemoryFileSystem

from mvlm_jax.cli import prepare as prepare_command
from mvlm_jax.data import stores
from mvlm_jax.data.augmentation import Augment
from mvlm_jax.data.formats import tar_index
from mvlm_jax.data.images import AbsentImage, ImageSpec, UnusableImage
from mvlm_jax.data.mixtures import open_mixture
from mvlm_jax.data.pipeline import PairBatches, PairExamples
from mvlm_jax.data.skipped import left_out_of
from mvlm_jax.data.sources import open_source, source_files, split_name
from mvlm_jax.data.writing.dataset import read_manifest
from mvlm_jax.errors import UserError

IMAGES = [encoded(picture(seed=seed), "JPEG") for seed in range(4)]


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """Two tar files of three examples each; the images that repeat are told apart by their captions."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    store = fsspec.filesystem("memory")
    store.rm("/", recursive=True) if store.ls("/") else None
    for number in range(2):
        members = {}
        for nth in range(3):
            key = f"{number}{nth}"
            members[f"{key}.jpg"] = IMAGES[nth]
            members[f"{key}.txt"] = f"caption {key}".encode()
        put(store, f"/bucket/{number}.tar", members)
    return store


def put(store, path, members):
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    store.pipe_file(path, data.getvalue())


@pytest.fixture
def requests(monkeypatch):
    """The (path, start, end) of all bytes that are asked for."""
    asked = []
    cat = MemoryFileSystem.cat_file
    monkeypatch.setattr(
        MemoryFileSystem,
        "cat_file",
        lambda self, path, start=None, end=None, **more: (
            asked.append((path, start, end)) or cat(self, path, start, end)
        ),
    )
    return asked


def opened(uri="webdataset:memory://bucket/{0..1}.tar"):
    return open_source(uri, data_dir="")


def refusal(uri):
    with pytest.raises(UserError) as caught:
        opened(uri)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def everything(source):
    return [source[i] for i in range(len(source))]


def test_tar_files_in_a_store_hold_what_they_hold_on_a_disk(bucket, tmp_path):
    for number in range(2):
        (tmp_path / f"{number}.tar").write_bytes(bucket.cat_file(f"/bucket/{number}.tar"))
    source = opened()
    assert everything(source) == everything(open_source(f"webdataset:{tmp_path}/*.tar", data_dir=""))
    assert everything(opened("webdataset:memory://bucket/*.tar")) == everything(source)
    assert everything(pickle.loads(pickle.dumps(source))) == everything(source)
    assert source.caption_counts().tolist() == [1] * 6
    assert split_name("webdataset:memory://bucket/{0..1}.tar?buffer=5") == "0..1"
    assert source_files("webdataset:memory://bucket/{0..1}.tar") == ("memory://bucket/0.tar", "memory://bucket/1.tar")


def test_the_index_is_made_once_and_captions_are_kept_with_it(bucket, requests, monkeypatch):
    made = []
    read = tar_index._read
    monkeypatch.setattr(tar_index, "_read", lambda *args, **more: made.append(more["name"]) or read(*args, **more))
    uri = "webdataset:memory://bucket/{0..1}.tar?index=memory://bucket/index"
    first = everything(opened(uri))
    assert sorted(made) == ["memory://bucket/0.tar", "memory://bucket/1.tar"]
    requests.clear()
    source = opened(uri)
    assert list(open_mixture(uri, data_dir="").captions()) == [
        f"caption {n}{nth}" for n in range(2) for nth in range(3)
    ]
    assert not [path for path, *_ in requests if path.endswith(".tar")]  # the index answered
    assert everything(source) == first and len(made) == 2
    # What changed is read again; so is a damaged index.
    put(bucket, "/bucket/1.tar", {"x.jpg": IMAGES[0], "x.txt": b"new"})
    [kept] = [path for path in bucket.ls("/bucket/index", detail=False) if "/0.tar-" in path]
    bucket.pipe_file(kept, bucket.cat_file(kept)[:-40])
    assert [example["captions"] for example in everything(opened(uri))][2:] == [["caption 02"], ["new"]]
    assert sorted(made[2:]) == ["memory://bucket/0.tar", "memory://bucket/1.tar"]


def test_examples_that_come_next_are_fetched_together(bucket, requests):
    source = opened()
    requests.clear()
    source.read_ahead([5, 0, 2, 1])
    assert len(requests) == 2  # one for the neighbours in the first file, one for the second
    assert [source[i]["image"] for i in (5, 0, 2, 1)] == [IMAGES[2], IMAGES[0], IMAGES[2], IMAGES[1]]
    assert len(requests) == 2
    assert source[4]["image"] == IMAGES[1] and len(requests) == 3


def test_ranges_far_apart_are_not_fetched_with_what_lies_between(bucket, requests, monkeypatch):
    bucket.pipe_file("/bucket/x", bytes(range(200)))
    monkeypatch.setattr(stores, "GAP", 10)
    ranges = [stores.Range("memory://bucket/x", start, size) for start, size in ((150, 5), (0, 4), (12, 3), (198, 9))]
    assert stores.read_ranges(ranges) == [
        bytes(range(150, 155)),
        bytes(range(4)),
        bytes([12, 13, 14]),
        bytes([198, 199]),
    ]
    assert [(start, end) for _, start, end in requests] == [(0, 15), (150, 155), (198, 207)]


def test_what_is_wrong_in_a_store_is_one_line(bucket, monkeypatch):
    assert "there is no 'memory://bucket/7.tar'" in refusal("webdataset:memory://bucket/7.tar")
    assert "nothing matches 'memory://bucket/x*.tar'" in refusal("webdataset:memory://bucket/x*.tar")
    assert "'nostore://b/0.tar' cannot be used: Protocol not known" in refusal("webdataset:nostore://b/0.tar")
    whole = bucket.cat_file("/bucket/0.tar")
    bucket.pipe_file("/bucket/0.tar", whole[:1000])
    assert "'memory://bucket/0.tar' cannot be read as a tar file: unexpected end" in refusal(
        "webdataset:memory://bucket/0.tar"
    )
    bucket.pipe_file("/bucket/0.tar", b"x" * 2000)
    assert "cannot be read as a tar file" in refusal("webdataset:memory://bucket/0.tar")
    assert "does not name a local path" in refusal("json:memory://bucket/a.json")
    assert "buffer='-3' is not a number" in refusal("webdataset:memory://bucket/0.tar?buffer=-3")
    monkeypatch.setattr(fsspec.core, "url_to_fs", lambda url: (_ for _ in ()).throw(ImportError("Install s3fs")))
    assert "'s3://b/0.tar' is in a store that needs a library: Install s3fs" in refusal("webdataset:s3://b/0.tar")


def test_an_object_that_changed_since_it_was_opened_is_no_shorter_image(bucket):
    source = opened()
    bucket.pipe_file("/bucket/1.tar", b"")
    for read in (lambda: source[4], lambda: source.read_ahead([4])):
        with pytest.raises(UserError, match=r"1\.tar' ends at byte .*; it was cut off since it was opened"):
            read()
    bucket.rm("/bucket/1.tar")
    with pytest.raises(UserError, match=r"there is no 'memory://bucket/1\.tar'"):
        source[4]


def test_damaged_examples_are_left_out_as_on_a_disk(bucket):
    members = {"a.txt": b"no image", "b.jpg": IMAGES[0], "b.json": b"{", "c.jpg": IMAGES[1], "c.heic": b"x"}
    put(bucket, "/bucket/2.tar", members)
    source = opened("webdataset:memory://bucket/2.tar")
    source.read_ahead(range(3))
    with pytest.raises(AbsentImage, match="a in memory://bucket/2.tar has no image"):
        source[0]
    with pytest.raises(UnusableImage, match="malformed_json: b.json"):
        source[1]
    assert source[2] == {"image": IMAGES[1], "captions": [], "image_id": "c"}
    assert source.caption_counts().tolist() == [1, 0, 0]
    assert left_out_of(source).as_dict() == {"unused_member": {"count": 1, "ids": ["c.heic"]}}


def test_shards_of_a_store_are_prepared_to_a_store_as_to_a_disk(bucket, tmp_path, capsys):
    uri = "--source=webdataset:memory://bucket/{0..1}.tar"
    for data_dir in (tmp_path, "memory://bucket/data"):
        assert prepare_command.run(["--dataset=mine", uri, f"--data_dir={data_dir}", "--workers=1"]) == 0
    here, there = tmp_path / "mine" / "1.0.0", "/bucket/data/mine/1.0.0"
    names = sorted(file.name for file in here.iterdir())
    assert sorted(path.rpartition("/")[2] for path in bucket.ls(there, detail=False)) == names
    assert all(bucket.cat_file(f"{there}/{name}") == (here / name).read_bytes() for name in names)
    assert not bucket.exists("/bucket/data/mine/incomplete.1.0.0")
    assert set(read_manifest(here)["files"]) == {"memory://bucket/0.tar", "memory://bucket/1.tar"}
    capsys.readouterr()
    put(bucket, "/bucket/1.tar", {"x.jpg": IMAGES[0], "x.txt": b"new"})
    assert prepare_command.run(["--dataset=mine", uri, "--data_dir=memory://bucket/data"]) == 2
    assert "already prepared, but memory://bucket/1.tar changed since" in capsys.readouterr().err


def batches(uri, tokenizer, *, rows):
    plain = Augment(min_scale=1.0, flip=False, operations=0, magnitude=0)
    spec = ImageSpec(size=8, max_pixels=10_000)
    examples = PairExamples(mixture=open_mixture(uri, data_dir=""), seed=3, spec=spec, augment=plain)
    return PairBatches(examples, tokenizer, max_length=16, batch_size=4, rows=tuple(rows))


def test_batches_of_a_store_are_those_of_a_disk_at_any_step_and_host(bucket, tmp_path, requests, tokenizer):
    for number in range(2):
        (tmp_path / f"{number}.tar").write_bytes(bucket.cat_file(f"/bucket/{number}.tar"))
    here = batches(f"webdataset:{tmp_path}/{{0..1}}.tar?buffer=3", tokenizer, rows=range(4))
    there = batches("webdataset:memory://bucket/{0..1}.tar?buffer=3", tokenizer, rows=range(4))
    second_host = batches("webdataset:memory://bucket/{0..1}.tar?buffer=3", tokenizer, rows=(2, 3))
    for step in (5, 0, 1000):
        on_disk = here[step]
        requests.clear()
        batch = there[step]
        assert len(requests) <= 2  # files, though the batch has four examples
        assert all((batch[name] == on_disk[name]).all() for name in ("image", "text", "image_id"))
        assert (second_host[step]["image"] == batch["image"][2:]).all()
