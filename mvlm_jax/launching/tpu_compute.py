"""One TPU slice through Compute Engine, as a managed instance group: v5p, v6e, TPU7x and what comes after.

A workload policy says how the machines are connected, an instance template what each of them is, and the group makes
them; the policy and the template cost nothing.
"""

import re
import tempfile
from pathlib import Path

from absl import flags

from mvlm_jax.errors import RunError, UserError
from mvlm_jax.launching.gcloud import again, chips, gcloud, given, seconds
from mvlm_jax.launching.job import Job
from mvlm_jax.launching.startup import GRACE_SECONDS, LOG, Startup
from mvlm_jax.launching.tools import Tools
from mvlm_jax.launching.tpu_queue import send_code

IMAGE_PROJECT = "ubuntu-os-accelerator-images"
IMAGES = {
    "ct5p": "ubuntu-accel-2204-amd64-tpu-v5e-v5p-v6e",
    "ct6e": "ubuntu-accel-2204-amd64-tpu-v5e-v5p-v6e",
    "tpu7x": "ubuntu-accel-2404-amd64-tpu-tpu7x",
}
GROUP = ("compute", "instance-groups", "managed")
TEMPLATE = ("compute", "instance-templates")
POLICY = ("compute", "resource-policies")


def create(tools: Tools, job: Job, options: flags.FlagValues) -> None:
    job.check_bucket_workdir()
    size, image = hosts(options), options.runtime_version or _image(options)
    for what, listing, _ in _parts(job, options):
        tools.refuse(listing, what=what, delete=_again("delete", job, options))
    startup = Startup(job=job, delete=_delete_group(job, options), seconds=seconds(options), keep=options.keep)
    with tempfile.TemporaryDirectory(prefix="mvlm-launch-") as folder:
        script = tools.file(Path(folder, "startup.sh"), startup.script())
        send_code(tools, startup, folder=Path(folder), options=options)
        if size == 1:
            _create_machines(tools, job, options, image=image, script=script, policy=[])
        else:
            region = _region(options)
            topology = ["--type=HIGH_THROUGHPUT", f"--accelerator-topology={options.topology}"]
            tools.run(gcloud(options, *POLICY, "create", "workload-policy", job.name, f"--region={region}", *topology))
            with tools.undoing(_delete_policy(job, options)):
                policy = [f"--workload-policy={job.name}"]
                _create_machines(tools, job, options, image=image, script=script, policy=policy)
    print(f"status: {_again('status', job, options)}\nlogs: {_again('logs', job, options, workdir=job.workdir)}")


def run(tools: Tools, job: Job, options: flags.FlagValues) -> None:
    raise UserError("with --machine_type a run is started by create alone; an instance that is reset starts it again")


def status(tools: Tools, job: Job, options: flags.FlagValues) -> None:
    tools.run(gcloud(options, *GROUP, "list-instances", job.name, f"--zone={options.zone}"))


def logs(tools: Tools, job: Job, options: flags.FlagValues) -> None:
    """From every machine, of which one is the first host, or from the copy that the first host left when it ended.

    More of them is waited for on one machine only.
    """
    listed = gcloud(options, *GROUP, "list-instances", job.name, f"--zone={options.zone}", "--format=value(name)")
    tail = f"--command=sudo tail -n 200 {'-F ' if options.follow else ''}{LOG}"
    try:
        names = sorted(tools.lines(listed)) or ["INSTANCE"] * tools.dry_run
        if not names:
            raise RunError(f"the group {job.name} has no machines")
        for name in names:
            print(f"{name}:")
            tools.run(gcloud(options, "compute", "ssh", name, f"--zone={options.zone}", tail))
    except RunError as error:
        if not job.workdir:
            raise RunError(f"{error}; with --workdir the log of a TPU that is deleted is shown") from error
        startup = Startup(job=job, delete=[], seconds=0, keep=False)
        tools.run(gcloud(options, "storage", "cat", startup.log_copy()))


def delete(tools: Tools, job: Job, options: flags.FlagValues) -> None:
    """All that create makes; what costs money first. Goes on where one of them cannot be deleted."""
    errors = []
    for what, listing, command in _parts(job, options):
        try:
            if tools.dry_run or tools.exists(listing):
                tools.run(command)
            else:
                print(f"there is no longer {what}")
        except RunError as error:
            errors.append(str(error))
    if errors:
        raise RunError("; ".join(errors))


def hosts(options: flags.FlagValues) -> int:
    """How many machines the slice has.

    Raises:
      UserError: the machine type or the topology is wrong.
    """
    found = re.fullmatch(r"[a-z0-9]+-[a-z]+-([1-9]\d*)t", options.machine_type)
    if not found:
        raise UserError(f"--machine_type={options.machine_type} must be like ct6e-standard-4t, whose 4t are its chips")
    of_one, of_all = int(found[1]), chips(options.topology)
    if of_all % of_one:
        raise UserError(
            f"--topology={options.topology} has {of_all} chips, no multiple of the {of_one} of {options.machine_type}"
        )
    return of_all // of_one


def _create_machines(
    tools: Tools, job: Job, options: flags.FlagValues, *, image: str, script: Path, policy: list[str]
) -> None:
    if options.spot:
        bought = ["--provisioning-model=SPOT"]
    elif options.reservation:
        bought = ["--provisioning-model=RESERVATION_BOUND", "--reservation-affinity=specific"]
        bought += [f"--reservation={options.reservation}"]
    else:
        bought = ["--provisioning-model=STANDARD"]
    # A reservation bounds its machines by itself.
    last = [] if options.keep or options.reservation else [f"--max-run-duration={_last_second(options)}s"]
    tools.run(
        gcloud(
            options,
            *TEMPLATE,
            "create",
            job.name,
            f"--machine-type={options.machine_type}",
            f"--image-family={image}",
            f"--image-project={IMAGE_PROJECT}",
            "--boot-disk-size=200GB",
            "--maintenance-policy=TERMINATE",
            *bought,
            *(["--instance-termination-action=DELETE"] if last or options.spot or options.reservation else []),
            *last,
            *given(network=options.network, subnet=options.subnetwork),
            *([f"--region={_region(options)}"] if options.subnetwork else []),
            *given(service_account=options.service_account),
            "--scopes=cloud-platform",
            f"--metadata-from-file=startup-script={script}",
        )
    )
    (what, listing, _), *_rest = _parts(job, options)
    with tools.undoing(_delete_template(job, options)):
        tools.create(
            gcloud(
                options,
                *GROUP,
                "create",
                job.name,
                f"--zone={options.zone}",
                f"--template={job.name}",
                f"--size={hosts(options)}",
                # Each host is part of the slice: one that is lost ends the run, and is not made again by itself.
                "--default-action-on-vm-failure=do-nothing",
                *policy,
            ),
            listing=listing,
            what=what,
            delete=_again("delete", job, options),
        )


def _again(verb: str, job: Job, options: flags.FlagValues, **more: str) -> str:
    where = {"zone": options.zone, "machine_type": options.machine_type, "topology": options.topology}
    return again("tpu", verb, job.name, **where, **more, project=options.project)


def _parts(job: Job, options: flags.FlagValues) -> list[tuple[str, list[str], list[str]]]:
    """What create makes: its name for a user, the command that lists it, and the one that deletes it."""
    name, region = job.name, _region(options)
    named = [f"--filter=name={name}", "--format=value(name)"]
    group = (
        f"the instance group {name} in {options.zone}",
        gcloud(options, *GROUP, "list", f"--zones={options.zone}", *named),
        [*_delete_group(job, options), *given(project=options.project)],
    )
    template = (
        f"the instance template {name}",
        gcloud(options, *TEMPLATE, "list", *named),
        _delete_template(job, options),
    )
    policy = (
        f"the workload policy {name} in {region}",
        gcloud(options, *POLICY, "list", f"--regions={region}", *named),
        _delete_policy(job, options),
    )
    return [group, template, policy] if hosts(options) > 1 else [group, template]


def _delete_group(job: Job, options: flags.FlagValues) -> list[str]:
    return ["gcloud", *GROUP, "delete", job.name, f"--zone={options.zone}", "--quiet"]


def _delete_template(job: Job, options: flags.FlagValues) -> list[str]:
    return gcloud(options, *TEMPLATE, "delete", job.name, "--quiet")


def _delete_policy(job: Job, options: flags.FlagValues) -> list[str]:
    return gcloud(options, *POLICY, "delete", job.name, f"--region={_region(options)}", "--quiet")


def _last_second(options: flags.FlagValues) -> int:
    return seconds(options) + 3 * GRACE_SECONDS


def _region(options: flags.FlagValues) -> str:
    return options.zone.rpartition("-")[0]


def _image(options: flags.FlagValues) -> str:
    family = options.machine_type.partition("-")[0]
    if family not in IMAGES:
        raise UserError(
            f"no image is known for --machine_type={options.machine_type}; give --runtime_version=FAMILY, one of "
            f"gcloud compute images list --project={IMAGE_PROJECT}"
        )
    return IMAGES[family]
