"""A JobSet on GKE: TPU slices, or machines with GPUs. The cluster is that of the current context of kubectl."""

import json
from typing import Any

from absl import flags

from mvlm_jax.errors import UserError
from mvlm_jax.launching import jobset
from mvlm_jax.launching.gcloud import again, check_machines, chips, given
from mvlm_jax.launching.job import Job, check_name
from mvlm_jax.launching.tools import Tools

TOOL = "kubectl"
LONGEST_NAME = 40


def define_flags(values: flags.FlagValues) -> None:
    text: Any = {"flag_values": values}
    flags.DEFINE_string("image", None, "Image made from the Dockerfile, its target tpu or gpu.", **text)
    flags.DEFINE_string("tpu_type", None, "As GKE calls it, such as tpu-v6e-slice; with --topology.", **text)
    flags.DEFINE_string("topology", None, "Of a slice, such as 4x4.", **text)
    flags.DEFINE_integer("chips_per_host", 4, "Of a TPU machine.", lower_bound=1, **text)
    flags.DEFINE_integer("slices", 1, "How many TPU slices train together.", lower_bound=1, **text)
    flags.DEFINE_string("gpu_type", None, "As GKE calls it, such as nvidia-h100-mega-80gb.", **text)
    flags.DEFINE_integer("gpus", 8, "Of a machine, with --gpu_type.", lower_bound=1, **text)
    flags.DEFINE_integer("nodes", 1, "How many machines, with --gpu_type.", lower_bound=1, **text)
    flags.DEFINE_boolean("spot", False, "Cheaper machines, which may be taken away at any time.", **text)
    flags.DEFINE_string("reservation", None, "Name of the reservation whose machines are used.", **text)
    flags.DEFINE_integer("restarts", 20, "How often the run is started again after a failure.", lower_bound=0, **text)
    flags.DEFINE_string("queue", None, "Local queue of Kueue; XPK calls its own multislice-queue.", **text)
    flags.DEFINE_string("service_account", None, "Of Kubernetes; it may use the bucket.", **text)
    flags.DEFINE_string("namespace", None, "Namespace; default: that of the context.", **text)
    flags.DEFINE_string("context", None, "Context of kubectl; default: the current one.", **text)
    flags.DEFINE_boolean("keep", False, "Leave the finished JobSet and its logs, for more than a day.", **text)
    flags.DEFINE_boolean("follow", False, "With logs: wait for more of them.", **text)


def create(tools: Tools, job: Job, options: flags.FlagValues) -> None:
    # Pods, and what Kueue makes, have longer names, which must not be longer than that of a host.
    check_name(job.name, longest=28 if options.queue else LONGEST_NAME)
    job.check_bucket_workdir()
    job.check_image_recipe()
    check_machines(options)
    manifest = jobset.manifest(job, _machines(options), _settings(options))
    named = {"what": f"the JobSet {job.name}", "delete": _again("delete", job, options)}
    listing = _kubectl(options, "get", "jobset", job.name, "--ignore-not-found", "--output=name")
    tools.refuse(listing, **named)
    text = json.dumps(manifest, indent=2) + "\n"
    tools.create(_kubectl(options, "create", "--filename=-"), listing=listing, text=text, **named)
    print(f"status: {_again('status', job, options)}\nlogs: {_again('logs', job, options)}")


def status(tools: Tools, job: Job, options: flags.FlagValues) -> None:
    check_name(job.name, longest=LONGEST_NAME)
    tools.run(_kubectl(options, "get", "jobset", job.name))
    tools.run(_kubectl(options, "get", "pods", f"--selector={jobset.NAME_LABEL}={job.name}", "--output=wide"))


def logs(tools: Tools, job: Job, options: flags.FlagValues) -> None:
    """Of process 0, which reports for all."""
    check_name(job.name, longest=LONGEST_NAME)
    first = f"{jobset.NAME_LABEL}={job.name},{jobset.JOB_LABEL}=0,batch.kubernetes.io/job-completion-index=0"
    follow = ["--follow"] if options.follow else []
    tools.run(
        _kubectl(options, "logs", f"--selector={first}", f"--container={jobset.CONTAINER}", "--tail=200", *follow)
    )


def delete(tools: Tools, job: Job, options: flags.FlagValues) -> None:
    check_name(job.name, longest=LONGEST_NAME)
    tools.run(_kubectl(options, "delete", "jobset", job.name))


VERBS = {"create": create, "status": status, "logs": logs, "delete": delete}


def _machines(options: flags.FlagValues) -> jobset.Machines:
    if (options.tpu_type is None) == (options.gpu_type is None):
        raise UserError("give --tpu_type=… --topology=… for TPUs, or --gpu_type=… for GPUs")
    if options.gpu_type is not None:
        return jobset.gpus(options.gpu_type, of_one=options.gpus, nodes=options.nodes)
    if options.topology is None:
        raise UserError(f"--tpu_type={options.tpu_type} needs --topology=…, such as 4x4")
    of_all = chips(options.topology)
    of_one = min(options.chips_per_host, of_all)
    if of_all % of_one:
        raise UserError(f"--topology={options.topology} has {of_all} chips, no multiple of --chips_per_host={of_one}")
    return jobset.tpus(
        options.tpu_type, topology=options.topology, of_one=of_one, hosts=of_all // of_one, slices=options.slices
    )


def _settings(options: flags.FlagValues) -> jobset.Settings:
    if options.image is None:
        raise UserError("--image is needed; docs/launch/gke.md says how to make one")
    return jobset.Settings(
        image=options.image,
        spot=options.spot,
        reservation=options.reservation,
        restarts=options.restarts,
        queue=options.queue,
        service_account=options.service_account,
        keep=options.keep,
    )


def _kubectl(options: flags.FlagValues, *words: str) -> list[str]:
    return ["kubectl", *words, *given(namespace=options.namespace, context=options.context)]


def _again(verb: str, job: Job, options: flags.FlagValues) -> str:
    return again("gke", verb, job.name, namespace=options.namespace, context=options.context)
