"""A dataset with the features and the layout of TFDS's coco_captions, as TFDS itself writes it."""

import io
import pickle

import numpy as np
import pytest
import tensorflow_datasets as tfds
from examples import encoded, picture

from mvlm_jax.data.mixtures import open_mixture
from mvlm_jax.data.sources import open_source, split_name
from mvlm_jax.errors import UserError

NAMES = "?captions=captions/text&id=image/id"
IMAGES = [encoded(picture(seed=i), "JPEG") for i in range(6)]


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    data_dir = tmp_path_factory.mktemp("tfds")

    class CocoLike(tfds.core.GeneratorBasedBuilder):
        pkg_dir_path = tmp_path_factory.mktemp("package")
        VERSION = tfds.core.Version("1.1.0")
        BUILDER_CONFIGS = [tfds.core.BuilderConfig(name="2014")]

        def _info(self):
            captions = tfds.features.Sequence({"id": np.int64, "text": tfds.features.Text()})
            features = {"image": tfds.features.Image(), "image/id": np.int64, "captions": captions}
            return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(features), disable_shuffling=True)

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for i, image in enumerate(IMAGES):
                said = [{"id": 10 * i + n, "text": f"{word} {i}"} for n, word in enumerate(("first", "zweitens"))]
                yield i, {"image": io.BytesIO(image), "image/id": 1000 + i, "captions": said}

    CocoLike(data_dir=data_dir, config="2014", file_format="array_record").download_and_prepare()
    return data_dir


def uris(data_dir):
    directory = data_dir / "coco_like" / "2014"
    return [
        f"tfds:coco_like/2014:train{NAMES}",
        f"arrayrecord:{directory}/train{NAMES}",
        f"arrayrecord:{directory}/1.1.0/*.array_record*{NAMES}",
    ]


@pytest.mark.parametrize("number", range(3))
def test_options_name_the_features_that_are_read(data_dir, number):
    source = open_source(uris(data_dir)[number], data_dir=str(data_dir))
    copy = pickle.loads(pickle.dumps(source))
    assert len(source) == 6
    for i in range(6):
        assert source[i] == copy[i]
        assert source[i] == {"image": IMAGES[i], "captions": [f"first {i}", f"zweitens {i}"], "image_id": f"{1000 + i}"}
        assert source.example_id(i) == copy.example_id(i) == f"{1000 + i}"


def test_slices_and_mixtures_take_options_too(data_dir):
    mixture = open_mixture(
        f"2*tfds:coco_like/2014:train[:50%]{NAMES} + tfds:coco_like/2014:train[3:]{NAMES}", data_dir=str(data_dir)
    )
    assert [source.example_id(record) for source, record in mixture.records()] == [f"{1000 + i}" for i in range(6)]
    assert split_name(f"tfds:coco_like/2014:train{NAMES}") == "train"


def test_prepared_ids_are_not_those_of_another_feature(shapes_dir):
    source = open_source("tfds:shapes:val?id=captions", data_dir=shapes_dir)
    assert source.example_id(3) == source[3]["image_id"] == source[3]["captions"][0]


def refusal(uri, data_dir):
    with pytest.raises(UserError) as caught:
        open_source(uri, data_dir=str(data_dir))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_features_that_are_not_there_are_refused_with_those_that_are(data_dir):
    message = refusal("tfds:coco_like/2014:train", data_dir)
    assert "has no captions, image_id but" in message
    assert "captions/text" in message and "image/id" in message
    assert message.endswith("the options image, captions, id name others")
    assert "records of" in refusal(uris(data_dir)[2].replace("captions/text", "said"), data_dir)
    assert "tfds: takes image, captions, id" in refusal("tfds:coco_like/2014:train?split=val", data_dir)


def test_form_of_a_dataset_is_asked_for(data_dir, tmp_path):
    assert refusal("tfds:coco_like:train", data_dir).endswith("write coco_like/ and one of 2014")
    assert f"{tmp_path / 'coco_like' / '2014'}/VERSION" in refusal("tfds:coco_like/2014:train", tmp_path)
    assert "is not of the form" in refusal("tfds:../2014:train", data_dir)
