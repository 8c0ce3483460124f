import pytest
from absl import flags
from examples import CAPTIONS

from mvlm_jax.data import text
from mvlm_jax.data.builders import shapes
from mvlm_jax.data.writing.dataset import write_dataset


@pytest.fixture(scope="session", autouse=True)
def absl_flags_are_parsed():
    flags.FLAGS.mark_as_parsed()


@pytest.fixture(scope="session")
def shapes_dir(tmp_path_factory):
    data_dir = tmp_path_factory.mktemp("data")
    write_dataset(shapes.collection(train=40, val=12, test=12), name="shapes", data_dir=data_dir)
    return str(data_dir)


@pytest.fixture(scope="session")
def tokenizer():
    return text.train_tokenizer(CAPTIONS, kind="roberta", vocab_size=400)
