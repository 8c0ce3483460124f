import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mvlm_jax.data.examples import Source
from mvlm_jax.data.images import decode_image
from mvlm_jax.data.sources import open_source, source_files, split_name
from mvlm_jax.errors import UserError
from mvlm_jax.stores import datasets


def refusal(uri: str, data_dir: str) -> str:
    with pytest.raises(UserError) as caught:
        open_source(uri, data_dir=data_dir)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_examples_are_encoded_image_captions_and_id(shapes_dir):
    source = open_source("tfds:shapes:val", data_dir=shapes_dir)
    assert isinstance(source, Source) and len(source) == 12
    assert [source[i]["image_id"] for i in range(12)] == [f"shapes-val-{i:06d}" for i in range(12)]
    example = source[3]
    assert set(example) == {"image", "captions", "image_id"}
    assert all(isinstance(caption, str) for caption in example["captions"])
    assert decode_image(example["image"], max_pixels=10_000).shape == (64, 64, 3)


def test_source_survives_pickling(shapes_dir):
    source = open_source("tfds:shapes:train", data_dir=shapes_dir)
    source[0]
    copy = pickle.loads(pickle.dumps(source))
    assert len(copy) == 40 and copy[7] == source[7]


def test_split_may_be_a_slice(shapes_dir):
    assert len(open_source("tfds:shapes:train[:10%]", data_dir=shapes_dir)) == 4


def test_empty_data_dir_means_the_environment_variable(shapes_dir, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", shapes_dir)
    assert len(open_source("tfds:shapes:test", data_dir="")) == 12


@pytest.mark.parametrize("uri", ["hdf5:/a.h5", "shapes", "tfds:shapes", "tfds::train", "json:", ""])
def test_other_schemes_are_refused_with_the_legal_ones(uri, tmp_path):
    assert "tfds:<name>:<split>" in refusal(uri, str(tmp_path))


def test_unprepared_dataset_is_refused_with_the_command_that_makes_it(tmp_path):
    sources = {"flickr8k": " --source=DIR", "shapes": "", "shapes_vqa": "", "mine": " --source=URI"}
    for name, source in sources.items():
        command = f"mvlm prepare --dataset={name}{source} --data_dir={tmp_path}"
        assert refusal(f"tfds:{name}:train", str(tmp_path)).endswith(command)


def test_wrong_split_is_refused_with_the_legal_ones(shapes_dir):
    assert "'dev'" in refusal("tfds:shapes:dev", shapes_dir)
    assert "test, train, val" in refusal("tfds:shapes:dev", shapes_dir)


def test_unfinished_dataset_is_not_taken_for_a_finished_one(tmp_path):
    (tmp_path / "shapes" / "incomplete.ABC_1.0.0").mkdir(parents=True)
    (tmp_path / "shapes" / "incomplete.ABC_1.0.0" / "dataset_info.json").write_text("{}")
    (tmp_path / "shapes" / "1.0.0").mkdir()
    assert "is not prepared" in refusal("tfds:shapes:train", str(tmp_path))


@pytest.mark.parametrize("name", ["dataset_info.json", "features.json"])
def test_damaged_description_of_a_dataset_is_refused(name, shapes_dir, tmp_path):
    shutil.copytree(shapes_dir, tmp_path / "data")
    file = tmp_path / "data" / "shapes" / "1.0.0" / name
    for damaged in (file.read_bytes()[:100], b"", b"[1]", b'{"a": 1}'):
        file.write_bytes(damaged)
        message = refusal("tfds:shapes:val", str(tmp_path / "data"))
        assert message.startswith(f"the description of dataset {file.parent} cannot be read: ")
        assert message.endswith("; prepare it again")


def test_type_that_is_sought_in_tensorflow_is_refused(shapes_dir, tmp_path):
    shutil.copytree(shapes_dir, tmp_path / "data")
    file = tmp_path / "data" / "shapes" / "1.0.0" / "features.json"
    file.write_text(file.read_text().replace('"uint8"', '""'))
    assert refusal("tfds:shapes:val", str(tmp_path / "data")).endswith("; prepare it again")


def test_tensorflow_is_never_imported(shapes_dir):
    program = (
        "import sys; from mvlm_jax.cli import prepare; from mvlm_jax.data import pipeline, sources; "
        f"sources.open_source('tfds:shapes:val', data_dir={shapes_dir!r})[0]; "
        "sys.exit('tensorflow' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize("uri", ["json:gs://bucket/a.json", "arrayrecord:gs://bucket/x*", "table:https://a.org/b.csv"])
def test_remote_paths_are_refused(uri, tmp_path):
    assert "local path" in refusal(uri, str(tmp_path))


def test_data_dir_in_a_bucket_is_read_from_its_copy(shapes_dir, monkeypatch):
    asked = []

    def copied(*place, split):
        asked.append((*place, split))
        return next(Path(shapes_dir, "shapes").iterdir())

    monkeypatch.setattr(datasets, "prepared", copied)
    assert len(open_source("tfds:shapes:val", data_dir="gs://bucket/data")) == 12
    monkeypatch.setenv("TFDS_DATA_DIR", "s3://bucket/data")
    assert len(open_source("tfds:shapes:val", data_dir="")) == 12
    assert asked == [(f"{scheme}://bucket/data", "shapes", "val") for scheme in ("gs", "s3")]


def test_paths_may_start_at_the_home_directory(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(b"an image")
    (tmp_path / "pairs.json").write_text('[{"image": "a.png", "caption": "a cat"}]')
    source = open_source("json:~/pairs.json?image_root=~/images", data_dir="")
    assert source[0]["image"] == b"an image"
    assert source_files("json:~/pairs.json") == (tmp_path / "pairs.json",)


def test_wrong_options_are_refused_with_the_legal_ones(tmp_path):
    assert "'root'; json: takes split, image_root" in refusal("json:/a.json?root=/b", str(tmp_path))
    assert "webdataset: takes buffer, index" in refusal("webdataset:/a.tar?split=train", str(tmp_path))
    assert "'split' is not an option=value" in refusal("json:/a.json?split", str(tmp_path))
    assert "given once" in refusal("json:/a.json?split=a&split=b", str(tmp_path))


@pytest.mark.parametrize(
    ("uri", "name"),
    [
        ("tfds:flickr8k:dev", "dev"),
        ("tfds:flickr8k:dev[:10%]", "dev_10"),
        ("json:/data/dataset_coco.json?split=val", "val"),
        ("table:/data/my pairs.csv", "my_pairs"),
        ("arrayrecord:/data/coco/val", "val"),
        ("webdataset:/data/{000..099}.tar", "000..099"),
        ("vqa:/data/VQA?split=test-dev", "test-dev"),
    ],
)
def test_results_are_filed_under_a_name_that_a_file_can_have(uri, name):
    assert split_name(uri) == name
