"""Weights in and out: checks published encoders against a config, exports a trained model, lists a file's tensors.

Example:
  mvlm weights import --config=demo --config.init_from.image=vit-base --output=runs/imported
  mvlm weights export --workdir=runs/demo --output=runs/exported
  mvlm weights inspect --source=hf:google/vit-base-patch16-224-in21k

import prints what a run with this config would load, resize and leave out; with --output it also writes the encoders
as folders that config.init_from and transformers read. export writes the whole model, for mvlm_jax.load; with --push
it also uploads it. Encoders are files, folders, or names on the Hugging Face Hub: hf:owner/name[/folder][@revision].
"""

import json
import sys
from collections.abc import Sequence

from absl import flags

from mvlm_jax.cli import commands
from mvlm_jax.errors import UserError
from mvlm_jax.interop import hub
from mvlm_jax.interop.exporting import export_run, new_folder, write_encoders
from mvlm_jax.interop.importing import import_encoders, inspect
from mvlm_jax.stores.mirror import shown
from mvlm_jax.tasks.registry import task_type
from mvlm_jax.training.workdir import WEIGHTS, read_config


def _import_flags(values: flags.FlagValues, argv: Sequence[str]) -> None:
    commands.define_config(values, argv)
    commands.define_path(values, "output", "Folder to write the encoders to; must not exist.", takes=[commands.FOLDER])


def _import(values: flags.FlagValues) -> None:
    config = commands.checked_config(values)
    if not (config.init_from.image or config.init_from.text):
        raise UserError("nothing to import; give --config.init_from.image=PATH, --config.init_from.text=PATH or both")
    tokenizer = task_type(config).open_tokenizer(config, workdir=None) if config.init_from.text else None
    imported = import_encoders(task_type(config).parameter_shapes(config), config=config, tokenizer=tokenizer)
    print("\n".join(imported.lines))
    if values.output:
        with new_folder(values.output) as folder:
            write_encoders(folder, imported.params, config=config, tokenizer=tokenizer)
            (folder / WEIGHTS).write_text(json.dumps(imported.report, indent=2) + "\n")
        print(shown("written: " + ", ".join(map(str, sorted(values.output.glob("*_encoder"))))))


def _export_flags(values: flags.FlagValues, argv: Sequence[str]) -> None:
    commands.define_workdir(values)
    commands.define_path(values, "output", "Folder to write; must not exist.", required=True, takes=[commands.FOLDER])
    flags.DEFINE_string(
        "push",
        None,
        "Repository of the Hugging Face Hub to upload the folder to too, hf:owner/name[@branch]. One that is not there "
        "is made, and is private. The login is that of hf auth login, or HF_TOKEN.",
        flag_values=values,
    )
    flags.DEFINE_integer("step", None, "Checkpoint to export; the latest by default.", flag_values=values)
    flags.DEFINE_boolean("ema", False, "Export the moving average of the parameters.", flag_values=values)


def _export(values: flags.FlagValues) -> None:
    target = hub.check_push(values.push) if values.push is not None else None
    task = task_type(read_config(values.workdir))
    step = export_run(
        values.workdir,
        output=values.output,
        step=values.step,
        assets=task.asset_files,
        about=task.about,
        averaged=values.ema,
    )
    what = "the average of the parameters at step" if values.ema else "step"
    print(shown(f"exported {what} {step} of {values.workdir} to {values.output}"))
    if target is not None:
        print(f"pushed to {hub.push(values.output, target, message=f'Step {step}')}")


def _inspect_flags(values: flags.FlagValues, argv: Sequence[str]) -> None:
    commands.define_path(
        values,
        "source",
        "File or folder of weights, its address in a store, or a name on the Hub.",
        required=True,
        takes=[commands.HUB_NAME, commands.FOLDER],
    )


def _inspect(values: flags.FlagValues) -> None:
    print(shown("\n".join(inspect(values.source))))


ACTIONS = {
    "import": (_import_flags, _import),
    "export": (_export_flags, _export),
    "inspect": (_inspect_flags, _inspect),
}


def run(argv: Sequence[str]) -> int:
    if argv[:1] in (["--help"], ["-h"]):
        print(__doc__.strip())
        return 0
    if not argv or argv[0] not in ACTIONS:
        received = f"{argv[0]!r} is not one of its actions; " if argv else ""
        print(f"mvlm weights: {received}usage: mvlm weights {{{','.join(ACTIONS)}}} --flag=value …", file=sys.stderr)
        return 2
    define_flags, main = ACTIONS[argv[0]]
    return commands.run(name=f"weights {argv[0]}", doc=__doc__, define_flags=define_flags, main=main, argv=argv[1:])
