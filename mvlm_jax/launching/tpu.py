"""Cloud TPUs: bought, set up, trained on and deleted again.

With --machine_type and --topology through Compute Engine, which Google develops further (v5p, v6e, TPU7x); with
--accelerator_type through the queue of the older Cloud TPU API, which gets fixes only, and which alone has v2 to v5e.
"""

from collections.abc import Callable
from types import ModuleType
from typing import Any

from absl import flags

from mvlm_jax.errors import UserError
from mvlm_jax.launching import tpu_compute, tpu_queue
from mvlm_jax.launching.gcloud import check_machines, define_machines, define_project
from mvlm_jax.launching.job import Job, check_name
from mvlm_jax.launching.tools import Tools

TOOL = "gcloud"
LONGEST_NAME = 40  # the providers add to it


def define_flags(values: flags.FlagValues) -> None:
    define_common(values)
    define_slices(values, default=1)


def define_common(values: flags.FlagValues) -> None:
    text: Any = {"flag_values": values}
    flags.DEFINE_string("zone", None, "Zone, such as us-east5-a.", required=True, **text)
    flags.DEFINE_string("machine_type", None, "Of Compute Engine, such as ct6e-standard-4t; with --topology.", **text)
    flags.DEFINE_string("topology", None, "Of the slice, such as 4x4.", **text)
    flags.DEFINE_string("accelerator_type", None, "Of the Cloud TPU API, such as v5litepod-16.", **text)
    flags.DEFINE_string(
        "runtime_version", None, "Software of a TPU of --accelerator_type; image family of --machine_type.", **text
    )
    flags.DEFINE_string("wait", None, "How long to stay in the queue, such as 6h; with --accelerator_type.", **text)
    flags.DEFINE_float("hours", 24.0, "The run is stopped, and saved, after so many.", lower_bound=0.1, **text)
    flags.DEFINE_boolean("keep", False, "Leave the TPU when the run ends; it costs money until you delete it.", **text)
    flags.DEFINE_boolean("follow", False, "With logs: wait for more of them.", **text)
    define_machines(values)
    define_project(values)


def define_slices(values: flags.FlagValues, *, default: int) -> None:
    """`default` is also the least number."""
    flags.DEFINE_integer("slices", default, "How many slices train together.", lower_bound=default, flag_values=values)


def verb(name: str) -> Callable[[Tools, Job, flags.FlagValues], None]:
    def call(tools: Tools, job: Job, options: flags.FlagValues) -> None:
        check_name(job.name, longest=LONGEST_NAME)
        getattr(_way(name, options), name)(tools, job, options)

    return call


def _way(name: str, options: flags.FlagValues) -> ModuleType:
    check_machines(options)
    both = options.accelerator_type is not None and options.machine_type is not None
    neither = options.accelerator_type is None and options.machine_type is None
    # To look in one place only would call a TPU in the other one gone.
    if both or neither and options.slices == 1:
        raise UserError(
            "give --machine_type=… --topology=… for Compute Engine, or --accelerator_type=… for the Cloud TPU API"
        )
    if options.machine_type is None:
        if name == "create" and (options.accelerator_type is None or options.runtime_version is None):
            raise UserError(
                "--accelerator_type=… and --runtime_version=… go together; the versions are those of "
                f"gcloud compute tpus versions list --zone={options.zone}"
            )
        return tpu_queue
    if options.topology is None:
        raise UserError(f"--machine_type={options.machine_type} needs --topology=…, such as 4x4")
    if options.slices > 1:
        raise UserError("several slices need --accelerator_type, or mvlm launch gke")
    if options.wait is not None:
        raise UserError("--wait is for the queue of --accelerator_type; Compute Engine answers at once")
    return tpu_compute


VERBS = {name: verb(name) for name in ("create", "run", "status", "logs", "delete")}
