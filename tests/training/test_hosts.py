"""Two processes of four devices over loopback, through the commands: one run, whatever it runs on."""

import json
import socket

import jax
import numpy as np
import pytest
from twenty import DEVICES, STEPS, flags_of, logged_losses, run_processes, watched

from mvlm_jax.cli import evaluate, train, weights
from mvlm_jax.errors import RunError, UserError
from mvlm_jax.inference import load
from mvlm_jax.training import hosts, inventory
from mvlm_jax.training.checkpoints import Checkpoints
from mvlm_jax.training.heartbeat import HEARTBEAT_TIMEOUT_SECONDS
from mvlm_jax.training.workdir import ORIGIN

HOST = socket.gethostname()
DATA, FSDP, ALL_AXES = (8, 1, 1), (1, 8, 1), (2, 2, 2)


@pytest.fixture(scope="module")
def first(shapes_dir, tmp_path_factory):
    """A whole run, one stopped in step 8, and two mistakes, each of one process: (directory, records, errors)."""
    if jax.device_count() != DEVICES:
        pytest.skip(f"needs {DEVICES} devices")
    directory = tmp_path_factory.mktemp("first")
    (directory / "process0").mkdir()
    (directory / "process0" / "words.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nred\n")
    of_one = {"text_encoder.kind": "bert", "text.tokenizer": "words.txt"}
    jobs = [
        {"flags": flags_of(data_dir=shapes_dir, workdir=directory / "whole", mesh=DATA)},
        {"flags": flags_of(data_dir=shapes_dir, workdir=directory / "stopped", mesh=FSDP), "stop_after": 7},
        {"flags": flags_of(data_dir=shapes_dir, workdir=directory / "none", **of_one)},
        {"flags": flags_of(data_dir=shapes_dir, workdir=directory / "none"), "more": {1: ["--config.seed=5"]}},
    ]
    return directory, *run_processes(directory, [{"command": "train"} | job for job in jobs])


@pytest.fixture(scope="module")
def resumed(first, shapes_dir):
    """The stopped run, continued by this process on another mesh until step 14, and then by two processes again."""
    workdir = first[0] / "stopped"
    with Checkpoints.for_reading(workdir / "checkpoints") as checkpoints:
        assert checkpoints.steps() == [7]
    with watched({}, stop_after=14):
        train.run(flags_of(data_dir=shapes_dir, workdir=workdir, mesh=ALL_AXES))
    with Checkpoints.for_reading(workdir / "checkpoints") as checkpoints:
        assert checkpoints.steps() == [7, 14]
    last = {"command": "train", "flags": flags_of(data_dir=shapes_dir, workdir=workdir, mesh=FSDP)}
    records, _ = run_processes(first[0], [last])
    return workdir, records


@pytest.mark.slow
def test_two_processes_train_the_run_of_one_device(first, on_one_device):
    directory, records, _ = first
    assert [record[0]["status"] for record in records] == [0, 0]
    np.testing.assert_allclose(logged_losses(directory / "whole"), on_one_device[0], rtol=1e-5)


@pytest.mark.slow
def test_each_process_reads_its_half_of_each_batch(first, on_one_device):
    halves = [record[0]["ids"] for record in first[1]]
    assert [halves[0][str(step)] + halves[1][str(step)] for step in range(STEPS)] == on_one_device[1]


@pytest.mark.slow
def test_one_process_writes(first):
    workdir = first[0] / "whole"
    assert len(list(workdir.glob("*tfevents*"))) == 1
    steps = [json.loads(line)["step"] for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert steps == [*range(1, STEPS + 1), STEPS]  # the last one twice: its losses, its evaluation


@pytest.mark.slow
def test_evaluation_by_two_processes_is_that_of_one(first, shapes_dir):
    workdir = first[0] / "whole"
    files = [workdir / "eval" / f"{stem}.json" for stem in ("retrieval-shapes-val", "reconstruction-shapes-val")]
    by_two = [json.loads(file.read_text()) for file in files]
    for file in files:
        file.unlink()
    assert evaluate.run(flags_of(data_dir=shapes_dir, workdir=workdir, mesh=ALL_AXES)) == 0
    for two, file in zip(by_two, files):
        one = json.loads(file.read_text())
        assert set(one) == set(two)
        assert one["captions"] == two["captions"] == 12
        words = {name for name in one if name in ORIGIN or isinstance(one[name], str)}
        assert {name: one[name] for name in words} == {name: two[name] for name in words}
        for name in set(one) - {"left_out", *words}:
            np.testing.assert_allclose(two[name], one[name], rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.slow
def test_a_run_goes_on_on_other_hosts_and_another_mesh(resumed, on_one_device):
    workdir, records = resumed
    assert [record[0]["status"] for record in records] == [0, 0]
    assert min(map(int, records[0][0]["ids"])) == 14
    np.testing.assert_allclose(logged_losses(workdir), on_one_device[0], rtol=1e-5)


@pytest.mark.slow
def test_a_model_trained_in_parts_over_two_processes_is_exported_whole(resumed, first, tmp_path):
    embeddings = []
    for name in ("whole", "stopped"):
        assert weights.run(["export", f"--workdir={first[0] / name}", f"--output={tmp_path / name}"]) == 0
        embeddings.append(load(tmp_path / name, batch_size=2).encode_text(["a red circle", "a small green star"]))
    np.testing.assert_allclose(*embeddings, atol=1e-4)
    assert np.abs(embeddings[0][0] - embeddings[0][1]).max() > 1e-2


@pytest.mark.slow
def test_what_one_process_lacks_ends_all_in_one_line(first):
    directory, records, errors = first
    assert [record[2]["status"] for record in records] == [2, 2]
    assert f"mvlm train: process 1 ({HOST}): text.tokenizer='words.txt' cannot be read" in errors[0]
    assert "mvlm train: text.tokenizer='words.txt' cannot be read" in errors[1]


@pytest.mark.slow
def test_processes_of_different_commands_are_refused(first):
    directory, records, errors = first
    assert [record[3]["status"] for record in records] == [2, 2]
    differs = f"mvlm train: process 1 ({HOST}) has another config than process 0 ({HOST}); start every"
    assert all(differs in error for error in errors)
    assert not (directory / "none").exists()


@pytest.mark.parametrize("error", [UserError, RunError])
def test_an_error_of_another_process_is_of_the_same_kind_here(monkeypatch, error):
    sent = []

    def gathered(content):
        sent.append(content)
        return np.array([np.frombuffer((row + b"\0" * 64)[:64], np.uint8) for row in (sent[0], sent[-1])])

    monkeypatch.setattr(hosts, "_gathered", gathered)
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    with pytest.raises(error, match="^no room$"), hosts.together():
        raise error("no room")  # as process 0
    with pytest.raises(error, match=r"^process 0.*: no room$"), hosts.together():
        pass  # as process 1


SLURM = {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_NODELIST": "a[1-2]",
    "SLURM_NTASKS": "16",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "3",
}
TPU = {"TPU_ML_PLATFORM": "JAX"}
NO_METADATA = {"TPU_SKIP_MDS_QUERY": "1"}
KUBERNETES = {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}


@pytest.mark.parametrize(
    ("environment", "cluster"),
    [
        ({}, None),
        (NO_METADATA, None),  # what importing jax leaves where there is no TPU
        (SLURM, "SLURM job"),
        (SLURM | {"SLURM_NTASKS": "1"}, None),
        ({name: SLURM[name] for name in SLURM if name != "SLURM_STEP_NODELIST"}, None),  # in sbatch, outside srun
        ({"OMPI_MCA_orte_hnp_uri": "1.0;tcp://a:1", "OMPI_COMM_WORLD_SIZE": "2"}, "Open MPI job"),
        (TPU, "TPU VM"),
        (TPU | NO_METADATA, None),  # a notebook
        (TPU | {"TPU_WORKER_HOSTNAMES": "a,b"}, "TPU pod"),
        (TPU | {"TPU_WORKER_HOSTNAMES": "localhost"}, None),
        (TPU | {"TPU_PROCESS_ADDRESSES": "local"}, None),
        (TPU | {"TPU_WORKER_HOSTNAMES": "a", "MEGASCALE_NUM_SLICES": "2"}, "TPU pod"),
        (KUBERNETES, None),
        (KUBERNETES | {"JOB_COMPLETION_INDEX": "0"}, "Kubernetes job"),
    ],
)
def test_the_environment_tells_a_cluster_of_several_processes(environment, cluster):
    assert hosts.cluster_of(environment) == cluster


@pytest.fixture
def initialized(monkeypatch):
    """The arguments of each call of `jax.distributed.initialize`, which does nothing, in an environment without one."""
    calls = []
    for name in (*SLURM, *TPU, *KUBERNETES, "OMPI_COMM_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(jax.distributed, "initialize", lambda **arguments: calls.append(arguments))
    monkeypatch.setattr(inventory, "check_installations", lambda: None)
    return calls


def test_a_machine_alone_joins_nothing(initialized):
    hosts.connect()
    assert initialized == []


def test_a_cluster_is_joined_without_flags_unless_one_process_is_asked_for(initialized, monkeypatch):
    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)
    hosts.connect(num_processes=1)
    assert initialized == []
    hosts.connect()
    assert initialized == [{"heartbeat_timeout_seconds": HEARTBEAT_TIMEOUT_SECONDS}]


def test_a_cluster_that_cannot_be_joined_is_a_mistake_with_a_way_out(monkeypatch):
    def fail(**_):
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(jax.distributed, "initialize", fail)
    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="the SLURM job that the environment describes: .* or --num_processes=1"):
        hosts.connect()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"coordinator_address": "a:1"}, "--num_processes and --process_id missing"),
        ({"num_processes": 2, "process_id": 0}, "--coordinator_address missing"),
        ({"coordinator_address": "a", "num_processes": 2, "process_id": 0}, "a must be HOST:PORT"),
        ({"coordinator_address": "a:1", "num_processes": 2, "process_id": 2}, "between 0 and 1"),
        ({"coordinator_address": "a:1", "num_processes": 2, "process_id": -1}, "--process_id=-1"),
        ({"coordinator_address": "a:1", "num_processes": 0, "process_id": 0}, "--num_processes=0 must be at least 1"),
    ],
)
def test_flags_that_do_not_describe_a_process_are_refused(given, message, initialized):
    with pytest.raises(UserError, match=message):
        hosts.connect(**given)
    assert initialized == []
