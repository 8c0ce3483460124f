r"""Trains on machines of others: buys or asks for them, starts the run there, shows it, and gives them back.

    mvlm launch tpu create --name=mvlm --zone=us-east5-a --machine_type=ct6e-standard-4t --topology=4x4 --spot \
      --config=pretrain_4m --workdir=gs://my-bucket/runs/mvlm --config.data.data_dir=/gcs/my-bucket/data
    mvlm launch tpu status --name=mvlm --zone=us-east5-a --machine_type=ct6e-standard-4t --topology=4x4
    mvlm launch tpu logs --name=mvlm --zone=us-east5-a --machine_type=ct6e-standard-4t --topology=4x4
    mvlm launch tpu delete --name=mvlm --zone=us-east5-a --machine_type=ct6e-standard-4t --topology=4x4

Platforms: tpu, multislice, gke, vertex, slurm. Everywhere --name, --config and --workdir mean the same, and every
--config.field=value goes to the run as it is; the config is checked here first. gs://BUCKET/PATH is
/gcs/BUCKET/PATH on the machines. --dry-run prints every command and file and does nothing. docs/launch/index.md has a
page for each platform.
"""

import functools
import importlib
import sys
from collections.abc import Sequence

from absl import flags

from mvlm_jax.cli import commands
from mvlm_jax.launching import buckets
from mvlm_jax.launching.job import Job, config_words
from mvlm_jax.launching.tools import Tools
from mvlm_jax.tasks import registry

PLATFORMS = ("tpu", "multislice", "gke", "vertex", "slurm")
VERBS = ("create", "run", "status", "logs", "delete")
TRAINING = ("create", "run")


def run(argv: Sequence[str]) -> int:
    if argv[:1] in (["--help"], ["-h"]):
        print(__doc__.strip())
        return 0
    usage = f"usage: mvlm launch {{{','.join(PLATFORMS)}}} {{{','.join(VERBS)}}} --flag=value …"
    if not argv or argv[0] not in PLATFORMS:
        received = f"{argv[0]!r} is not one of its platforms; " if argv else ""
        print(f"mvlm launch: {received}{usage}", file=sys.stderr)
        return 2
    platform = importlib.import_module(f"mvlm_jax.launching.{argv[0]}")
    if argv[1:2] in (["--help"], ["-h"]):
        argv = [argv[0], "create", "--help"]
    if argv[1:2] == [] or argv[1] not in platform.VERBS:
        received = f"{argv[1]!r} is not one of" if argv[1:] else "give one of"
        print(f"mvlm launch {argv[0]}: {received} {', '.join(platform.VERBS)}; {usage}", file=sys.stderr)
        return 2
    name, verb, words = argv[0], argv[1], [_with_underscores(word) for word in argv[2:]]

    def define_flags(values: flags.FlagValues, given: Sequence[str]) -> None:
        flags.DEFINE_string("name", None, "Of the run, and of what is made for it.", required=True, flag_values=values)
        trains = verb in TRAINING
        flags.DEFINE_string(
            "workdir", None, "Directory of the run; gs://BUCKET/PATH in a cloud.", required=trains, flag_values=values
        )
        flags.DEFINE_multi_string(
            "bucket", [], "gs://BUCKET to be mounted too, beside those that the flags name.", flag_values=values
        )
        flags.DEFINE_boolean("dry_run", False, "Print commands and files, and do nothing.", flag_values=values)
        platform.define_flags(values)
        if trains:
            commands.define_config(values, given)

    def main(values: flags.FlagValues) -> None:
        if verb in TRAINING:
            registry.validate(values.config)  # before anything is paid for
        job = Job(
            name=values.name,
            config=config_words(words) if verb in TRAINING else (),
            workdir=values.workdir or "",
            buckets=tuple(map(buckets.bucket, values.bucket)),
        )
        tools = Tools(dry_run=values.dry_run)
        if verb in TRAINING:
            tools.require(platform.TOOL)
        platform.VERBS[verb](tools, job, values)

    start = functools.partial(commands.run, name=f"launch {name} {verb}", doc=__doc__)
    return start(define_flags=define_flags, main=main, argv=words)


def _with_underscores(word: str) -> str:
    """The tools of the providers write --dry-run where absl has --dry_run; both are taken."""
    flag, equals, value = word.partition("=")
    if flag.startswith("--") and not flag.startswith("--config"):
        flag = flag[:2] + flag[2:].replace("-", "_")
    return f"{flag}{equals}{value}"
