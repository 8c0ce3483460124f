"""The manifest of a run as a JobSet of Kubernetes, a job for each TPU slice or one for all machines with GPUs."""

import dataclasses
from typing import Any

from mvlm_jax.launching import buckets
from mvlm_jax.launching.job import NOTICE_SECONDS, PORT, WRONG, Job

CONTAINER = "train"
NAME_LABEL = "jobset.sigs.k8s.io/jobset-name"
JOB_LABEL = "jobset.sigs.k8s.io/job-index"
XPK_LABEL = "xpk.google.com/workload"
SPOT_LABEL = "cloud.google.com/gke-spot"
SLICE_JOB = "slice-job"  # as XPK calls it
NOT_FOUND = (126, 127)  # the shell's: the image has no such program
DAY_SECONDS = 24 * 3600
IMAGE_USER = 1000  # that of the Dockerfile


@dataclasses.dataclass(frozen=True)
class Machines:
    """
    Attributes:
      selector: labels of the nodes.
      resource: its name and number for each pod.
      hosts: pods of a job.
      slices: jobs.
      address: whether the processes are told where to find each other; those on TPUs know.
    """

    selector: dict[str, str]
    resource: tuple[str, int]
    hosts: int
    slices: int
    address: bool

    @property
    def on_tpu(self) -> bool:
        return self.resource[0] == "google.com/tpu"


@dataclasses.dataclass(frozen=True)
class Settings:
    image: str
    spot: bool
    reservation: str | None
    restarts: int
    queue: str | None
    service_account: str | None
    keep: bool


def tpus(kind: str, *, topology: str, of_one: int, hosts: int, slices: int) -> Machines:
    selector = {"cloud.google.com/gke-tpu-accelerator": kind, "cloud.google.com/gke-tpu-topology": topology}
    return Machines(selector, ("google.com/tpu", of_one), hosts=hosts, slices=slices, address=False)


def gpus(kind: str, *, of_one: int, nodes: int) -> Machines:
    selector = {"cloud.google.com/gke-accelerator": kind}
    return Machines(selector, ("nvidia.com/gpu", of_one), hosts=nodes, slices=1, address=nodes > 1)


def manifest(job: Job, machines: Machines, settings: Settings) -> dict[str, Any]:
    labels = {XPK_LABEL: job.name}
    if settings.queue is not None:
        labels["kueue.x-k8s.io/queue-name"] = settings.queue
    annotations = {}
    if machines.on_tpu:
        # One slice for each job, whose pods share it with no other.
        annotations["alpha.jobset.sigs.k8s.io/exclusive-topology"] = "cloud.google.com/gke-nodepool"
    spec: dict[str, Any] = {
        "failurePolicy": {
            # A job that a rule for its pods has ended, see below, ends them all; after other failures all start again.
            "rules": [
                {"name": "nothing-to-retry", "action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}
            ],
            "maxRestarts": settings.restarts,
        },
        "replicatedJobs": [
            {"name": SLICE_JOB, "replicas": machines.slices, "template": {"spec": _job(job, machines, settings)}}
        ],
    }
    if not settings.keep:
        spec["ttlSecondsAfterFinished"] = DAY_SECONDS
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {"name": job.name, "labels": labels, "annotations": annotations},
        "spec": spec,
    }


def _job(job: Job, machines: Machines, settings: Settings) -> dict[str, Any]:
    final = {"containerName": CONTAINER, "operator": "In", "values": [WRONG, *NOT_FOUND]}
    return {
        "parallelism": machines.hosts,
        "completions": machines.hosts,
        "completionMode": "Indexed",
        "backoffLimit": 0,  # a lost host ends the others; the set starts again as a whole
        "podFailurePolicy": {"rules": [{"action": "FailJob", "onExitCodes": final}]},
        "template": {
            "metadata": {
                "labels": {XPK_LABEL: job.name},
                "annotations": {"gke-gcsfuse/volumes": "true"},
            },
            "spec": _pod(job, machines, settings),
        },
    }


def _pod(job: Job, machines: Machines, settings: Settings) -> dict[str, Any]:
    selector, tolerations = dict(machines.selector), []
    if settings.spot:
        selector[SPOT_LABEL] = "true"
        tolerations.append({"key": SPOT_LABEL, "operator": "Equal", "value": "true", "effect": "NoSchedule"})
    if settings.reservation is not None:
        selector["cloud.google.com/reservation-name"] = settings.reservation
    user = 0 if machines.on_tpu else IMAGE_USER  # the devices of a TPU belong to root
    name, number = machines.resource
    tolerations.append({"key": name, "operator": "Exists", "effect": "NoSchedule"})
    pod: dict[str, Any] = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": NOTICE_SECONDS,
        "nodeSelector": selector,
        "tolerations": tolerations,
        "containers": [
            {
                "name": CONTAINER,
                "image": settings.image,
                "command": ["mvlm", *map(_literally, job.train()), *_address(job, machines)],
                "resources": {"requests": {name: number}, "limits": {name: number}},
                "volumeMounts": [
                    {"name": "memory", "mountPath": "/dev/shm"},
                    *(
                        {"name": f"bucket-{index}", "mountPath": f"{buckets.MOUNT}/{bucket}"}
                        for index, bucket in enumerate(job.mounts)
                    ),
                ],
            }
        ],
        "volumes": [
            # Batches go from the workers to the trainer through shared memory, of which a pod has 64 MB by itself.
            {"name": "memory", "emptyDir": {"medium": "Memory"}},
            *(_bucket(index, bucket, user=user) for index, bucket in enumerate(job.mounts)),
        ],
    }
    if machines.on_tpu:
        pod["securityContext"] = {"runAsUser": user}
    if settings.service_account is not None:
        pod["serviceAccountName"] = settings.service_account
    return pod


def _bucket(index: int, bucket: str, *, user: int) -> dict[str, Any]:
    attributes = {"bucketName": bucket, "mountOptions": buckets.mount_options(user=user)}
    return {
        "name": f"bucket-{index}",
        "csi": {"driver": "gcsfuse.csi.storage.gke.io", "volumeAttributes": attributes},
    }


def _literally(word: str) -> str:
    """A word that Kubernetes gives to the program as it is: $(NAME) in it would be a variable's value."""
    return word.replace("$", "$$")


def _address(job: Job, machines: Machines) -> list[str]:
    if not machines.address:
        return []
    first = f"{job.name}-{SLICE_JOB}-0-0.{job.name}"
    return [
        f"--coordinator_address={first}:{PORT}",
        f"--num_processes={machines.hosts}",
        "--process_id=$(JOB_COMPLETION_INDEX)",
    ]
