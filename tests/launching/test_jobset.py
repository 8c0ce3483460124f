"""The JobSet of a run, and what Kubernetes and the JobSet controller do with it by their documented rules."""

import json
import os
import re
import subprocess
import sys

import pytest
from controllers import run_jobset
from test_launch import GKE, GPUS, IN_CLOUD, launch, pod
from tiny import ROOT, demo_flags

from mvlm_jax.launching import jobset
from mvlm_jax.launching.job import STOPPED, WRONG, Job


def manifest(tools, platform, *words):
    assert launch(platform, "create", *IN_CLOUD, *words) == 0
    return json.loads(tools.text("stdin"))


class Ended:
    """A pod that has ended, or that waits to be terminated."""

    def __init__(self, status):
        self._status = status

    def poll(self):
        return self._status

    def send_signal(self, number):
        self._status = self._status or -number

    def wait(self, timeout=None):
        return self._status


def outcome(manifest, *attempts):
    """What becomes of a JobSet whose pods end with these statuses; None goes on."""
    starts = iter([status for attempt in attempts for status in attempt])
    return run_jobset(manifest, start=lambda words, index: Ended(next(starts)))


def test_a_wrong_config_ends_after_one_attempt_and_an_interruption_starts_again(tools):
    made = manifest(tools, GKE, "--restarts=3")
    good, stopped = [0, 0, 0, 0], [STOPPED] * 4
    assert outcome(made, good) == ("Completed", 1)
    assert outcome(made, [WRONG] * 4) == ("Failed", 1)
    assert outcome(made, [None, None, WRONG, None]) == ("Failed", 1)  # the others are terminated
    assert outcome(made, [127] * 4) == ("Failed", 1)
    assert outcome(made, stopped, good) == ("Completed", 2)
    assert outcome(made, [None, -9, None, None], [1, 1, 134, None], stopped, good) == ("Completed", 4)
    assert outcome(made, *[stopped] * 4) == ("Failed", 4)
    assert outcome(made, [1, None, None, None], [WRONG] * 4) == ("Failed", 2)


def test_every_slice_starts_again_where_one_of_them_is_interrupted(tools):
    made = manifest(tools, GKE, "--slices=2", "--restarts=1")
    assert outcome(made, [0, 0, 0, 0, STOPPED, STOPPED, None, None], [0] * 8) == ("Completed", 2)
    assert outcome(made, [None] * 7 + [WRONG]) == ("Failed", 1)


@pytest.fixture(scope="module")
def cluster(demo_dir, tmp_path_factory):
    return Cluster(demo_dir, tmp_path_factory.mktemp("bucket"))


class Cluster:
    """One machine, with a folder in place of the bucket that is mounted as /gcs/b-1."""

    def __init__(self, data, bucket):
        self.bucket = bucket
        (bucket / "data").symlink_to(data)

    def run(self, *config, name, restarts, watch=lambda pods, restarts: None, **environment):
        """The outcome, the exit statuses of the pods and what they wrote to stderr."""
        flags = [word for word in demo_flags(data_dir="/gcs/b-1/data", workdir="") if word.startswith("--config.")]
        job = Job("mvlm", config=("--config=demo", *flags, *config), workdir=f"gs://b-1/{name}")
        settings = jobset.Settings(
            image="i", spot=True, reservation=None, restarts=restarts, queue=None, service_account=None, keep=False
        )
        made = json.loads(json.dumps(jobset.manifest(job, jobset.gpus("nvidia-l4", of_one=1, nodes=1), settings)))
        processes, logs = [], []

        def start(words, index):
            assert words[0] == "mvlm"
            logs.append(self.bucket / f"{name}-{len(logs)}.log")
            words = [re.sub(r"(?<![\w/])/gcs/b-1/", f"{self.bucket}/", word) for word in words[1:]]
            processes.append(
                Limited(
                    [sys.executable, "-m", "mvlm_jax", *words],
                    env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
                    stderr=logs[-1].open("w"),
                )
            )
            return processes[-1]

        result = run_jobset(made, start=start, watch=watch)
        return result, [process.poll() for process in processes], [log.read_text() for log in logs]


class Limited(subprocess.Popen):
    """Raises as the protocol says."""

    def wait(self, timeout=None):
        try:
            return super().wait(timeout)
        except subprocess.TimeoutExpired as error:
            raise TimeoutError from error


@pytest.mark.slow
def test_a_typo_that_only_the_image_finds_is_one_attempt(cluster):
    result, statuses, logs = cluster.run("--config.stepz=5", name="typo", restarts=20)
    assert (result, statuses) == (("Failed", 1), [WRONG])
    assert "the config has no field 'stepz'" in logs[0]


@pytest.mark.slow
def test_a_preempted_run_goes_on_from_its_checkpoint_in_the_next_attempt(cluster):
    log = cluster.bucket / "preempted" / "metrics.jsonl"

    def take_the_node(pods, restarts):
        if restarts == 0 and not pods[0].conditions and log.exists() and log.read_text().count("\n") > 2:
            pods[0].disrupt()

    steps = ["--config.steps=30", "--config.checkpoint.every=1000", "--config.eval.every=0"]
    result, statuses, logs = cluster.run(*steps, name="preempted", restarts=1, watch=take_the_node)
    assert (result, statuses) == (("Completed", 2), [STOPPED, 0])
    [stopped] = re.findall(r"stopped after step (\d+) of 30", logs[0])
    assert f"continuing after step {stopped} of 30" in logs[1]
    lines = map(json.loads, log.read_text().splitlines())
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, 31))


@pytest.mark.slow
def test_a_run_that_fails_on_every_node_is_tried_up_to_the_limit(cluster):
    result, statuses, logs = cluster.run(name="failing", restarts=1, JAX_PLATFORMS="cuda")
    assert (result, statuses) == (("Failed", 2), [1, 1])
    assert not (cluster.bucket / "failing" / "metrics.jsonl").exists()


def test_a_slice_for_each_job(tools):
    made = manifest(tools, GKE, "--slices=2", "--queue=multislice-queue", "--service_account=sa")
    [job] = made["spec"]["replicatedJobs"]
    assert (job["replicas"], job["template"]["spec"]["parallelism"], job["template"]["spec"]["completions"]) == (
        2,
        4,
        4,
    )
    assert made["metadata"]["labels"] == {
        "xpk.google.com/workload": "mvlm", "kueue.x-k8s.io/queue-name": "multislice-queue"
    }  # fmt: skip
    spec = pod(made)
    assert spec["serviceAccountName"] == "sa"
    assert spec["containers"][0]["resources"]["limits"] == {"google.com/tpu": 4}
    assert spec["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v6e-slice", "cloud.google.com/gke-tpu-topology": "4x4"
    }  # fmt: skip


def test_buckets_that_are_named_are_mounted_where_the_words_say(tools):
    spec = pod(manifest(tools, GKE, "--bucket=gs://b-3/", "--bucket=b-4"))
    volumes = {each["name"]: each["csi"]["volumeAttributes"] for each in spec["volumes"] if "csi" in each}
    options = "implicit-dirs,rename-dir-limit=200000,metadata-cache:ttl-secs:0,uid=0,gid=0"
    assert {attributes["mountOptions"] for attributes in volumes.values()} == {options}
    buckets = {name: attributes["bucketName"] for name, attributes in volumes.items()}
    paths = {each["mountPath"]: buckets.get(each["name"]) for each in spec["containers"][0]["volumeMounts"]}
    assert paths == {"/dev/shm": None, **{f"/gcs/b-{n}": f"b-{n}" for n in (1, 2, 3, 4)}}


def test_spot_nodes_are_asked_for_by_their_label(tools):
    spec = pod(manifest(tools, GKE, "--spot"))
    assert spec["nodeSelector"]["cloud.google.com/gke-spot"] == "true"
    assert {"cloud.google.com/gke-spot", "google.com/tpu"} == {each["key"] for each in spec["tolerations"]}


def test_gpu_machines_are_told_where_the_first_one_is(tools):
    made = manifest(tools, GPUS)
    command = pod(made)["containers"][0]["command"]
    assert command[-3:] == [
        "--coordinator_address=mvlm-slice-job-0-0.mvlm:8482", "--num_processes=2",
        "--process_id=$(JOB_COMPLETION_INDEX)",
    ]  # fmt: skip
    assert "annotations" not in made["metadata"] or made["metadata"]["annotations"] == {}


@pytest.mark.parametrize("words, said", [
    (["--topology=4x"], "must be like 4x4"),
    (["--topology=2x3", "--chips_per_host=4"], "no multiple"),
    (["--gpu_type=x"], "--tpu_type=… --topology=… for TPUs, or"),
])  # fmt: skip
def test_machines_that_cannot_be_are_refused(words, said, tools, capsys):
    assert launch(GKE, "create", *IN_CLOUD, *words) == 2
    assert said in capsys.readouterr().err
    assert tools.commands() == []
