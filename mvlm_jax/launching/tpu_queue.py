"""A TPU, or several slices of them, through queued resources of the Cloud TPU API: up to v6e.

The request waits in a queue, and a startup script does the rest, so that nothing has to stay connected.
"""

import tempfile
from pathlib import Path

from absl import flags

from mvlm_jax.errors import RunError
from mvlm_jax.launching import archive
from mvlm_jax.launching.gcloud import again, gcloud, given, seconds
from mvlm_jax.launching.job import Job
from mvlm_jax.launching.startup import LOG, Startup
from mvlm_jax.launching.tools import Tools

SCOPE = "https://www.googleapis.com/auth/cloud-platform"
REMOTE_SCRIPT = "/tmp/mvlm-startup.sh"
REQUEST = ("compute", "tpus", "queued-resources")
NODE = ("compute", "tpus", "tpu-vm")


def create(tools: Tools, job: Job, options: flags.FlagValues) -> None:
    job.check_bucket_workdir()
    startup = _startup(job, options)
    bought = {"what": f"the TPU {job.name} in {options.zone}", "delete": _again("delete", job, options)}
    tools.refuse(_listing(job, options), **bought)
    nodes = [f"--node-id={job.name}"]
    if options.slices > 1:
        nodes = [f"--node-count={options.slices}", f"--node-prefix={job.name}"]
    with tempfile.TemporaryDirectory(prefix="mvlm-launch-") as folder:
        script = tools.file(Path(folder, "startup.sh"), startup.script())
        send_code(tools, startup, folder=Path(folder), options=options)
        tools.create(
            gcloud(
                options,
                *(["alpha"] if options.reservation else []),  # where a reservation can be named
                *REQUEST,
                "create",
                job.name,
                f"--zone={options.zone}",
                *nodes,
                f"--accelerator-type={options.accelerator_type}",
                f"--runtime-version={options.runtime_version}",
                *(["--spot"] if options.spot else []),
                *(["--reserved", f"--reservation={options.reservation}"] if options.reservation else []),
                *given(network=options.network, subnetwork=options.subnetwork),
                *given(service_account=options.service_account, valid_until_duration=options.wait),
                f"--scopes={SCOPE}",
                f"--metadata-from-file=startup-script={script}",
            ),
            listing=_listing(job, options),
            **bought,
        )
    print(f"status: {_again('status', job, options)}\nlogs: {_again('logs', job, options, workdir=job.workdir)}")


def run(tools: Tools, job: Job, options: flags.FlagValues) -> None:
    """Starts a job on a TPU that is there, detached; also again, after an interruption."""
    job.check_bucket_workdir()
    startup = _startup(job, options)
    with tempfile.TemporaryDirectory(prefix="mvlm-launch-") as folder:
        script = tools.file(Path(folder, "startup.sh"), startup.script())
        send_code(tools, startup, folder=Path(folder), options=options)
        for node in _nodes(job, options):
            where = [f"--zone={options.zone}", "--worker=all"]
            tools.run(gcloud(options, *NODE, "scp", str(script), f"{node}:{REMOTE_SCRIPT}", *where))
            # A unit of this name that still runs is refused.
            command = f"--command=sudo systemd-run --collect --unit=mvlm bash {REMOTE_SCRIPT}"
            tools.run(gcloud(options, *NODE, "ssh", node, *where, command))


def status(tools: Tools, job: Job, options: flags.FlagValues) -> None:
    described = gcloud(options, *REQUEST, "describe", job.name, f"--zone={options.zone}")
    tools.run([*described, "--format=yaml(name,state,tpu.nodeSpec)"])


def logs(tools: Tools, job: Job, options: flags.FlagValues) -> None:
    """From the machine, or from the copy that it left when it ended."""
    tail = f"--command=sudo tail -n 200 {'-F ' if options.follow else ''}{LOG}"
    try:
        node = _nodes(job, options)[0]
        tools.run(gcloud(options, *NODE, "ssh", node, f"--zone={options.zone}", "--worker=0", tail))
    except RunError as error:
        if not job.workdir:
            raise RunError(f"{error}; with --workdir the log of a TPU that is deleted is shown") from error
        tools.run(gcloud(options, "storage", "cat", _startup(job, options).log_copy()))


def delete(tools: Tools, job: Job, options: flags.FlagValues) -> None:
    if tools.dry_run or tools.exists(_listing(job, options)):
        tools.run([*_delete(job, options), *given(project=options.project)])
    else:
        print(f"there is no TPU {job.name} in {options.zone}")


def send_code(tools: Tools, startup: Startup, *, folder: Path, options: flags.FlagValues) -> None:
    """Puts the program where the hosts fetch it from."""
    file = folder / "code.tar.gz"
    archive.checkout()
    if tools.dry_run:
        print(f"# {file}: {', '.join(archive.FILES)} of {archive.checkout()}")
    else:
        archive.write(file, recipe=startup.job.recipe_file)
    tools.run(gcloud(options, "storage", "cp", str(file), startup.code))


def _startup(job: Job, options: flags.FlagValues) -> Startup:
    return Startup(job=job, delete=_delete(job, options), seconds=seconds(options), keep=options.keep)


def _delete(job: Job, options: flags.FlagValues) -> list[str]:
    return ["gcloud", *REQUEST, "delete", job.name, f"--zone={options.zone}", "--force", "--quiet"]


def _listing(job: Job, options: flags.FlagValues) -> list[str]:
    wanted = [f"--zone={options.zone}", f"--filter=name~/{job.name}$", "--format=value(name)"]
    return gcloud(options, *REQUEST, "list", *wanted)


def _nodes(job: Job, options: flags.FlagValues) -> list[str]:
    if options.slices == 1:
        return [job.name]
    return [f"{job.name}-{slice_}" for slice_ in range(options.slices)]


def _again(verb: str, job: Job, options: flags.FlagValues, **more: str) -> str:
    platform = "tpu" if options.slices == 1 else "multislice"
    if options.slices == 1:
        more |= {"accelerator_type": options.accelerator_type}
    return again(platform, verb, job.name, zone=options.zone, project=options.project, **more)
