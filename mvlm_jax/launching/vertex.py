"""A custom job of Vertex AI, whose machines are deleted when the run ends. It mounts the buckets at /gcs by itself."""

import json
import tempfile
from pathlib import Path
from typing import Any

from absl import flags

from mvlm_jax.errors import RunError, UserError
from mvlm_jax.launching.gcloud import again, check_machines, define_project, gcloud, seconds
from mvlm_jax.launching.job import Job, check_name
from mvlm_jax.launching.tools import Tools

TOOL = "gcloud"
JOBS = ("ai", "custom-jobs")
RUNNING = ("QUEUED", "PENDING", "RUNNING", "PAUSED", "RESTARTING", "UPDATING")


def define_flags(values: flags.FlagValues) -> None:
    text: Any = {"flag_values": values}
    flags.DEFINE_string("region", None, "Region, such as us-central1.", required=True, **text)
    flags.DEFINE_string("image", None, "Image made from the Dockerfile, in Artifact Registry.", **text)
    flags.DEFINE_string("machine_type", None, "Such as a3-highgpu-8g or ct6e-standard-4t.", **text)
    flags.DEFINE_string("gpu_type", None, "As Vertex AI calls it, such as NVIDIA_H100_80GB.", **text)
    flags.DEFINE_integer("gpus", 8, "Of a machine, with --gpu_type.", lower_bound=1, **text)
    flags.DEFINE_string("topology", None, "Of a TPU slice, such as 4x4.", **text)
    flags.DEFINE_integer("nodes", 1, "How many machines.", lower_bound=1, **text)
    flags.DEFINE_float("hours", 24.0, "The job ends after so many.", lower_bound=0.1, **text)
    flags.DEFINE_boolean("follow", False, "With logs: wait for more of them.", **text)
    flags.DEFINE_boolean("spot", False, "Cheaper machines, which may be taken away at any time.", **text)
    flags.DEFINE_string("reservation", None, "projects/P/zones/Z/reservations/NAME whose machines are used.", **text)
    flags.DEFINE_string("network", None, "projects/NUMBER/global/networks/NAME to be peered with.", **text)
    flags.DEFINE_string("service_account", None, "E-mail of the account that the job works as.", **text)
    define_project(values)


def create(tools: Tools, job: Job, options: flags.FlagValues) -> None:
    job.check_bucket_workdir()
    job.check_image_recipe()
    check_machines(options)
    # Two jobs would write to one workdir.
    named = {"what": f"a running job called {job.name}", "delete": _again("delete", job, options)}
    tools.refuse(_running(job, options), **named)
    with tempfile.TemporaryDirectory(prefix="mvlm-launch-") as folder:
        # JSON is YAML too.
        file = tools.file(Path(folder, "job.json"), json.dumps(specification(job, options), indent=2) + "\n")
        where = [f"--region={options.region}", f"--display-name={job.name}", f"--config={file}"]
        tools.create(gcloud(options, *JOBS, "create", *where), listing=_running(job, options), **named)
    print(f"status: {_again('status', job, options)}\nlogs: {_again('logs', job, options)}")


def status(tools: Tools, job: Job, options: flags.FlagValues) -> None:
    tools.run([*_list(job, options), "--format=table(name.basename(),state,createTime,endTime,error.message)"])


def logs(tools: Tools, job: Job, options: flags.FlagValues) -> None:
    newest = _ids(tools, job, options, "--sort-by=~createTime", "--limit=1")
    if options.follow:
        tools.run(gcloud(options, *JOBS, "stream-logs", newest[0], f"--region={options.region}"))
    else:
        query = f'resource.type="ml_job" AND resource.labels.job_id="{newest[0]}"'
        read = ["logging", "read", query, "--limit=200", "--order=desc", "--freshness=30d"]
        tools.run(gcloud(options, *read, "--format=value(timestamp,jsonPayload.message,textPayload)"))


def delete(tools: Tools, job: Job, options: flags.FlagValues) -> None:
    """Cancels the jobs of this name that have not ended."""
    for identifier in tools.lines(_running(job, options)) or ["JOB"] * tools.dry_run:
        tools.run(gcloud(options, *JOBS, "cancel", identifier, f"--region={options.region}"))


VERBS = {"create": create, "status": status, "logs": logs, "delete": delete}


def specification(job: Job, options: flags.FlagValues) -> dict[str, Any]:
    """The CustomJobSpec."""
    if options.image is None or options.machine_type is None:
        raise UserError("--image and --machine_type are needed; docs/launch/vertex.md says which there are")
    machine = {"machineType": options.machine_type}
    if options.gpu_type is not None:
        machine |= {"acceleratorType": options.gpu_type, "acceleratorCount": options.gpus}
    if options.topology is not None:
        machine["tpuTopology"] = options.topology
    if options.reservation is not None:
        values = [options.reservation]
        machine["reservationAffinity"] = {
            "reservationAffinityType": "SPECIFIC_RESERVATION",
            "key": "compute.googleapis.com/reservation-name",
            "values": values,
        }
    # Says to the processes of several GPU machines where they find each other; those on TPUs know.
    told = options.nodes > 1 and options.topology is None
    start = ["python", "-m", "mvlm_jax.launching.vertex_worker"] if told else ["mvlm"]
    container = {"imageUri": options.image, "command": start, "args": job.train()}
    pool = {"machineSpec": machine, "containerSpec": container}
    if told:  # the first machine is a pool of its own
        pools = [pool | {"replicaCount": 1}, pool | {"replicaCount": options.nodes - 1}]
    else:
        pools = [pool | {"replicaCount": options.nodes}]
    scheduling: dict[str, Any] = {"timeout": f"{seconds(options)}s", "restartJobOnWorkerRestart": True}
    if options.spot:
        scheduling["strategy"] = "SPOT"
    network = {"network": options.network} if options.network else {}
    account = {"serviceAccount": options.service_account} if options.service_account else {}
    return {"workerPoolSpecs": pools, "scheduling": scheduling, **network, **account}


def _list(job: Job, options: flags.FlagValues, more: str = "") -> list[str]:
    check_name(job.name, longest=63)
    wanted = f'displayName="{job.name}"{more}'
    return gcloud(options, *JOBS, "list", f"--region={options.region}", f"--filter={wanted}")


def _ids(tools: Tools, job: Job, options: flags.FlagValues, *words: str) -> list[str]:
    listed = [*_list(job, options), *words, "--format=value(name.basename())"]
    found = tools.lines(listed) or ["JOB"] * tools.dry_run
    if not found:
        raise RunError(f"no job is called {job.name} in {options.region}")
    return found


def _running(job: Job, options: flags.FlagValues) -> list[str]:
    """Lists the numbers of the jobs that have not ended."""
    states = " OR ".join(f"state=JOB_STATE_{state}" for state in RUNNING)
    return [*_list(job, options, f" AND ({states})"), "--format=value(name.basename())"]


def _again(verb: str, job: Job, options: flags.FlagValues) -> str:
    return again("vertex", verb, job.name, region=options.region, project=options.project)
