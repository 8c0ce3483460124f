"""A task of a file of its own, one entry of the registry and a config: it is trained, evaluated, exported and loaded.

The task: how many shapes does an image show? A number, regressed by a head of its own.
"""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax.core import FrozenDict
from jax.sharding import PartitionSpec
from PIL import Image
from tiny import demo_flags

import mvlm_jax
from mvlm_jax.cli import evaluate, train, weights
from mvlm_jax.data.builders import shapes_tasks
from mvlm_jax.data.writing.dataset import write_dataset
from mvlm_jax.errors import UserError
from mvlm_jax.interop.model_card import About
from mvlm_jax.models.downstream import FusedMaskVLM
from mvlm_jax.tasks import registry
from mvlm_jax.tasks.labelled import LabelledTask, reasons
from mvlm_jax.tasks.model import maskvlm_fields

pytestmark = pytest.mark.slow


class CountingModel(FusedMaskVLM):
    def setup(self):
        super().setup()
        self.count_head = nn.Dense(1)

    def __call__(self, image, text):
        fused_image, fused_text = self.fuse(image, text, slice(0, 1))
        return self.count_head((fused_image * fused_text)[:, 0, 0])[:, 0]


class Count:
    def encode(self, answers):
        return {"count": np.float32(answers[0])} if answers and answers[0].isdecimal() else None


class Counting(LabelledTask):
    name = "counting"
    about = About("that counts shapes", 'model.predict([image], ["how many shapes are there?"])')
    sharding_rules = ((r"count_head/kernel", PartitionSpec()), *LabelledTask.sharding_rules)
    loss = "squared_error"
    targets = Count()
    flops_per_step = 1e6  # not counted

    @classmethod
    def build_model(cls, config, *, pad_id):
        return CountingModel(**maskvlm_fields(config, pad_id=pad_id))

    def target_shapes(self, batch_size):
        return {"count": jnp.zeros(batch_size, jnp.float32)}

    def losses(self, params, rows):
        error = jnp.square(self.model.apply(FrozenDict(params=params), rows["image"], rows["text"]) - rows["count"])
        return {"squared_error": (error.sum(), jnp.float32(error.size))}

    def predict(self, params, image, text):
        return np.asarray(self.model.apply({"params": params}, image, text)).tolist()

    def results(self, predicted, left_out):
        errors = [abs(count - int(row.answers[0])) for row, count in predicted if row.answers[0].isdecimal()]
        return {f"counting-{self.eval_name}": {"mean_error": float(np.mean(errors))} | reasons(left_out)}


@pytest.fixture(scope="module")
def exported(demo_run, tmp_path_factory):
    """The run, what evaluating it again has printed is in `eval`, and the folder it was exported to."""
    directory = tmp_path_factory.mktemp("counting")
    write_dataset(
        shapes_tasks.collection("shapes_vqa", train=40, val=20, test=20), name="shapes_vqa", data_dir=directory
    )
    flags = demo_flags(
        data_dir=directory, workdir=directory / "run", task="counting", steps=3, init_from__checkpoint=demo_run,
        data__train="tfds:shapes_vqa:train", data__eval="tfds:shapes_vqa:val",
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(registry.TASKS, "counting", Counting)
        assert train.run(flags) == 0
        assert evaluate.run([*flags, "--config.data.eval=tfds:shapes_vqa:test"]) == 0
        assert weights.run(["export", f"--workdir={directory / 'run'}", f"--output={directory / 'exported'}"]) == 0
        yield directory / "run", directory / "exported"


def test_a_new_task_is_trained_from_a_checkpoint(exported):
    run, _ = exported
    assert json.loads((run / "weights.json").read_text())["at_initial_values"] == ["count_head"]
    losses = [json.loads(line).get("squared_error") for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert len(losses) > 3 and all(np.isfinite(loss) for loss in losses if loss is not None)


def test_a_new_task_is_evaluated(exported):
    run, _ = exported
    names = {file.name for file in (run / "eval").iterdir()}
    assert names == {"counting-shapes_vqa-val.json", "counting-shapes_vqa-test.json"}
    assert all(json.loads((run / "eval" / name).read_text())["mean_error"] > 0 for name in names)


def test_a_new_task_is_loaded(exported):
    _, folder = exported
    model = mvlm_jax.load(folder, batch_size=2)
    pictures = [Image.new("RGB", (48, 48), color) for color in ("red", "green", "blue")]
    counts = model.predict(pictures, ["how many shapes are there?"] * 3)
    assert len(counts) == 3 and np.isfinite(counts).all()
    with pytest.raises(UserError, match="answer is not for a model of config.task=counting"):
        model.answer(pictures, ["how many?"] * 3)


def test_an_export_of_an_unknown_task_is_refused_with_the_known_ones(exported, monkeypatch):
    _, folder = exported
    monkeypatch.delitem(registry.TASKS, "counting")
    with pytest.raises(UserError, match="config.task='counting' is not one of pretrain, retrieval, vqa, nlvr2, entail"):
        mvlm_jax.load(folder)
