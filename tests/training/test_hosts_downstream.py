"""Two processes of four devices fine-tune and evaluate the tasks over labelled examples."""

import json
import socket

import jax
import pytest
from tiny import demo_flags
from twenty import DEVICES, run_processes

from mvlm_jax.cli import train
from mvlm_jax.data.builders import shapes_tasks
from mvlm_jax.data.writing.dataset import write_dataset
from mvlm_jax.tasks.classification import likeliest
from mvlm_jax.tasks.labelled import LabelledTask
from mvlm_jax.training.checkpoints import Checkpoints

pytestmark = pytest.mark.slow

RECIPES = {"entailment": "finetune_snli_ve.py:shapes", "vqa": "finetune_vqa.py:shapes"}
DATASETS = {"entailment": "shapes_ve", "vqa": "shapes_vqa"}
DATA, FSDP_TENSOR = (8, 1, 1), (1, 4, 2)
STOP = 2


def prepare(data_dir, *, val=60, tasks=RECIPES):
    for task in tasks:
        collection = shapes_tasks.collection(DATASETS[task], train=60, val=val, test=60)
        write_dataset(collection, name=DATASETS[task], data_dir=data_dir)


def flags(task, *, data_dir, workdir, mesh, part="[:20]"):
    fields = {"vqa__decoder_layers": 1} if task == "vqa" else {}
    return demo_flags(
        recipe=RECIPES[task], data_dir=data_dir, workdir=workdir, dtype="float32", steps=2 * STOP, eval__every=STOP,
        checkpoint__every=STOP, data__eval=f"tfds:{DATASETS[task]}:val{part}",
        **dict(zip(("mesh__data", "mesh__fsdp", "mesh__tensor"), mesh)), **fields,
    )  # fmt: skip


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """Each task, stopped in its third step; and an evaluation for which process 1 lacks the last examples."""
    if jax.device_count() != DEVICES:
        pytest.skip(f"needs {DEVICES} devices")
    directory = tmp_path_factory.mktemp("downstream")
    prepare(directory / "data")
    prepare(directory / "process0" / "own", tasks=["entailment"])
    prepare(directory / "process1" / "own", val=59, tasks=["entailment"])
    given = {"data_dir": directory / "data", "mesh": FSDP_TENSOR}
    jobs = [
        {"command": "train", "flags": flags(task, workdir=directory / task, **given), "stop_after": STOP}
        for task in RECIPES
    ]
    lacking = flags("entailment", workdir=directory / "entailment", data_dir="own", mesh=FSDP_TENSOR, part="[250:]")
    return directory, *run_processes(directory, [*jobs, {"command": "evaluate", "flags": lacking}])


def evaluations(workdir):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    evaluated = [line for line in lines if any(name.startswith("eval/") for name in line)]
    return {line["step"]: {name: value for name, value in line.items() if name != "time"} for line in evaluated}


@pytest.mark.parametrize("task", RECIPES)
def test_a_task_stopped_on_two_processes_ends_on_one_as_if_never_stopped(stopped, task, monkeypatch):
    directory, _, _ = stopped
    made = []
    whole = LabelledTask.predictions

    def predictions(self, params):
        predicted, left_out = whole(self, params)
        # Other meshes add up in another order: of labels the likeliest one is compared.
        labels = [(row, likeliest(answer) if isinstance(answer, dict) else answer) for row, answer in predicted]
        made.append((labels, left_out))
        return predicted, left_out

    monkeypatch.setattr(LabelledTask, "predictions", predictions)
    with Checkpoints.for_reading(directory / task / "checkpoints") as checkpoints:
        assert checkpoints.steps() == [STOP]
    assert train.run(flags(task, data_dir=directory / "data", workdir=directory / task, mesh=DATA)) == 0
    alone = directory / f"{task}_alone"
    assert train.run(flags(task, data_dir=directory / "data", workdir=alone, mesh=DATA)) == 0
    resumed, _, last = made
    assert len(last[0]) == 20
    assert resumed == last
    by_two, by_one = evaluations(directory / task), evaluations(alone)
    assert set(by_two) == set(by_one) == {STOP, 2 * STOP}
    assert by_two[STOP] == by_one[STOP]


def test_a_host_that_lacks_examples_of_the_evaluation_ends_all(stopped):
    _, records, errors = stopped
    assert [record[2]["status"] for record in records] == [2, 2]
    host = socket.gethostname()
    differs = f"process 1 ({host}) has another evaluation split than process 0 ({host})"
    assert all(differs in error for error in errors)
