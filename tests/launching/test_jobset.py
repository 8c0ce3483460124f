"""The JobSet of a run, and what Kubernetes and the JobSet controller do with it by their documented rules."""

import json

import pytest
from test_launch import GKE, GPUS, IN_CLOUD, launch, pod

from mvlm_jax.launching.job import STOPPED, WRONG


def manifest(tools, platform, *words):
    assert launch(platform, "create", *IN_CLOUD, *words) == 0
    return json.loads(tools.text("stdin"))


def after(manifest, *statuses, restarts=0):
    """What the JobSet does once its pods have ended with these statuses.

    A job fails with the reason PodFailurePolicy where a rule FailJob matches a pod, and with BackoffLimitExceeded
    where more pods failed than its limit. The first rule of the JobSet that names the reason decides; without one it
    starts again, as long as it may.
    """
    [replicated] = manifest["spec"]["replicatedJobs"]
    job, policy = replicated["template"]["spec"], manifest["spec"]["failurePolicy"]
    failed = [status for status in statuses if status]
    if not failed:
        return "Completed"
    final = [
        status
        for rule in job["podFailurePolicy"]["rules"]
        if rule["action"] == "FailJob" and rule["onExitCodes"]["operator"] == "In"
        for status in failed
        if status in rule["onExitCodes"]["values"]
    ]
    assert len(failed) > job["backoffLimit"]
    reason = "PodFailurePolicy" if final else "BackoffLimitExceeded"
    for rule in policy["rules"]:
        if reason in rule["onJobFailureReasons"]:
            return rule["action"]
    return "RestartJobSet" if restarts < policy["maxRestarts"] else "FailJobSet"


def test_a_wrong_config_ends_after_one_attempt_and_an_interruption_starts_again(tools):
    made = manifest(tools, GKE, "--restarts=3")
    assert after(made, 0, 0, 0, 0) == "Completed"
    assert after(made, WRONG, WRONG, WRONG, WRONG) == "FailJobSet"
    assert after(made, WRONG, 1, 1, 137) == "FailJobSet"
    assert after(made, STOPPED, STOPPED, STOPPED, STOPPED) == "RestartJobSet"
    assert after(made, 137, 134, 1, 1, restarts=2) == "RestartJobSet"
    assert after(made, STOPPED, STOPPED, restarts=3) == "FailJobSet"


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
    buckets = {each["name"]: each["csi"]["volumeAttributes"]["bucketName"] for each in spec["volumes"] if "csi" in each}
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
