"""What every command shares: flags of its own, `--help` with an example, and one line for what went wrong:
status 2 for the user's mistakes, 1 for a run that cannot go on, 130 for Ctrl-C."""

import difflib
import os
import re
import signal
import sys
from collections.abc import Callable, Collection, Sequence
from logging import WARNING, LogRecord
from pathlib import Path
from typing import Any

import jax
from absl import flags, logging
from ml_collections import ConfigDict
from ml_collections.config_flags import config_flags

from mvlm_jax import compilation_cache, console, signals
from mvlm_jax import config as config_lib
from mvlm_jax.config_migration import MOVED
from mvlm_jax.errors import RunError, UserError
from mvlm_jax.files import user_path
from mvlm_jax.interop import hub
from mvlm_jax.stores import mirror
from mvlm_jax.tasks import registry
from mvlm_jax.training import hosts
from mvlm_jax.training.workdir import read_config

HELP = {"--help", "-h", "-help"}
HUB_NAME, FOLDER, FILE = "a name on the Hub", "a folder in a store", "a file in a store"
RECIPES = Path(config_lib.__file__).with_name("configs")


def run(
    *,
    name: str,
    doc: str,
    define_flags: Callable[[flags.FlagValues, Sequence[str]], None],
    main: Callable[..., int | None],
    argv: Sequence[str],
    cleans_up: bool = True,
    arguments: bool = False,
) -> int:
    """Parses `argv` (without the program's name), calls `main`, returns the exit status: what `main` returns, or 0.

    After Ctrl-C it is 130. Where `main` has nothing to clean up after an interruption, Ctrl-C and SIGTERM may go on
    ending the process at once, as they do while it starts.

    Args:
      arguments: whether the command takes words that are no flags; `main` gets them as a list behind the flags.
    """
    console.show_lines(keep=_is_ours_or_urgent)
    values = flags.FlagValues()
    argv = [f"mvlm {name}", *argv]
    flags.DEFINE_boolean(
        "log_prefix",
        False,
        "Put the level, the time and the place in the code before each line of the log.",
        flag_values=values,
    )
    try:
        define_flags(values, argv)
        if HELP & set(argv):
            print(f"{doc.strip()}\n\nFlags:\n{_flag_help(values)}")
            return 0
        words = values(argv)[1:]
        if words and not arguments:
            raise UserError(f"unexpected argument {words[0]!r}; flags are written --name=value")
        # Grain's worker processes refuse to start before absl's global flags are parsed; ours are not global.
        flags.FLAGS.mark_as_parsed()
        if values.log_prefix:
            console.show_prefixes()
        if cleans_up:
            signals.restore()
        status = (main(values, words) if arguments else main(values)) or 0
        mirror.close_all(failed=False)
        return status
    except (RunError, UserError, flags.Error) as error:
        # A parser's own words; the library puts the flag and its value in front of every ValueError.
        cause = error.__context__
        return _refuse(name, cause if isinstance(error, flags.Error) and isinstance(cause, UserError) else error)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        # The recipe, or an override of it, raises these; from anywhere else they are our bug, not the user's.
        if not _raised_while_parsing(error):
            raise
        return _refuse(name, error)
    except KeyboardInterrupt as interrupt:
        print(f"mvlm {name}: {str(interrupt) or 'interrupted'}", file=sys.stderr)
        return 128 + signal.SIGINT
    finally:
        mirror.close_all(failed=True)


def define_config(
    values: flags.FlagValues, argv: Sequence[str], *, required: bool = True, default: ConfigDict | None = None
) -> None:
    """`--config=RECIPE[:argument]` with `--config.field=value` overrides, which change `default` where one is given."""
    for word in argv:
        old = re.match(r"--?config\.([\w.]+)", word)
        if old and old[1] in MOVED:
            now = " and ".join(f"config.{name}" for name in MOVED[old[1]])
            raise UserError(f"config.{old[1]} is {now} now")
    text = "Recipe, a file or the name of a shipped one such as demo; --config.field=value changes a field."
    common = {"flag_values": values, "sys_argv": list(argv)}
    if default is not None:
        config_flags.DEFINE_config_dict("config", default, text, **common)
        return
    config_flags.DEFINE_config_file("config", None, text, **common)
    values["config"].parser = _RecipeParser("config")
    if required:
        flags.mark_flag_as_required("config", flag_values=values)


def define_run_config(values: flags.FlagValues, argv: Sequence[str]) -> None:
    """As `define_config`; without `--config` it is the config of the run in `--workdir`.

    Raises:
      UserError: no run is there.
    """
    run = flags.FlagValues()
    define_workdir(run)
    define_hosts(run)
    if HELP & set(argv) or any(re.match("--?config(=|$)", word) for word in argv):
        define_config(values, argv, required=False)
    else:
        run(argv, known_only=True)
        connect(run)
        # A process that cannot read it ends the others, which would wait for it.
        with hosts.together():
            config = read_config(run.workdir)
        define_config(values, argv, default=config)


def define_path(
    values: flags.FlagValues, name: str, text: str, *, required: bool = False, takes: Collection[str] = ()
) -> None:
    """A flag whose value is a `Path`, `~` at its start being the home directory; None where it is not given.

    Args:
      takes: what it may be instead. HUB_NAME: a name on the Hugging Face Hub, which stays a string. FOLDER or FILE: the
        address of one in a store, which becomes the path of its copy on this machine.
    """
    flags.DEFINE(_PathParser(takes), name, None, text, flag_values=values)
    if required:
        flags.mark_flag_as_required(name, flag_values=values)


def define_workdir(values: flags.FlagValues, *, made: bool = False) -> None:
    """`made`: whether the command makes the directory where there is none."""
    text = "made where it is missing" if made else "as mvlm train left it"
    text = f"Directory of the run, or gs://BUCKET/PATH or s3://BUCKET/PATH; {text}."
    define_path(values, "workdir", text, required=True, takes=[FOLDER])


def check_writable(file: Path, *, flag: str) -> None:
    """Before the work whose result goes there.

    Raises:
      UserError: no file can be written in that place.
    """
    if file.is_dir():
        raise UserError(f"--{flag}={file} is a directory; give the path of a file")
    if not file.parent.is_dir():
        raise UserError(f"--{flag}={file}: the directory {file.parent} does not exist")
    if not os.access(file.parent, os.W_OK | os.X_OK):
        raise UserError(f"--{flag}={file}: the directory {file.parent} is not writable")


def define_hosts(values: flags.FlagValues) -> None:
    """What says which processes a run is made of where the cluster does not; see `connect`."""
    flags.DEFINE_string(
        "coordinator_address",
        None,
        "HOST:PORT of process 0 of a run of several processes, where no TPU pod, SLURM or Kubernetes tells.",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "num_processes", None, "How many processes the run has; 1: this one alone.", flag_values=values
    )
    flags.DEFINE_integer("process_id", None, "Which of them this is, from 0.", flag_values=values)


def connect(values: flags.FlagValues) -> None:
    """
    Raises:
      UserError: as `hosts.connect`.
    """
    hosts.connect(
        coordinator_address=values.coordinator_address,
        num_processes=values.num_processes,
        process_id=values.process_id,
    )
    if jax.distributed.is_initialized() and jax.process_index():
        logging.set_verbosity(logging.WARNING)  # process 0 reports the run


def use_compilation_cache(config: ConfigDict) -> None:
    """Must be called in every process of a run, after `connect`.

    Raises:
      UserError: as `compilation_cache.find`.
    """
    with hosts.together():
        directory = compilation_cache.find(config.compilation_cache)
    if not hosts.share(directory) and directory is not None:
        logging.warning(
            "compiled programs are not kept for the next start: not all processes see the same %s; "
            "set config.compilation_cache to a directory that all hosts share",
            directory,
        )
        directory = None
    compilation_cache.use(directory)


def checked_config(values: flags.FlagValues) -> ConfigDict:
    """The config that the flags describe, the same in every process.

    Raises:
      UserError: a value is out of its range.
    """
    with hosts.together():
        registry.validate(values.config)
    hosts.check_same(config=config_lib.to_json(values.config))
    return values.config


def recipe_file(name: str) -> Path:
    """The file at that path, or the shipped recipe of that name.

    Raises:
      UserError: neither is there.
    """
    if (file := Path(name)).is_file():
        return file
    shipped = sorted(file.stem for file in RECIPES.glob("[!_]*.py"))
    if name in shipped:
        return RECIPES / f"{name}.py"
    nearest = difflib.get_close_matches(Path(name).stem, shipped)
    hint = f"did you mean {' or '.join(nearest)}?" if nearest else f"the shipped ones are {', '.join(shipped)}"
    raise UserError(f"--config={name} is neither a file nor a shipped recipe; {hint}")


class _RecipeParser(config_flags.ConfigFileFlagParser):
    def parse(self, argument: str) -> ConfigDict:
        name, *variant = str(user_path(argument, name="--config")).split(":", 1)
        file = recipe_file(name)
        try:
            config = super().parse(":".join([str(file), *variant]))
            if not isinstance(config, ConfigDict):
                getattr(config, "seed", None)  # raises the OSError that the recipe met
                raise TypeError(f"get_config returns {config!r}, which is no ConfigDict")
        except Exception as error:
            if isinstance(error, UserError) or _is_of_a_field(error):
                raise
            cause = error.__cause__ or error.__context__ or error  # the library's message holds a whole traceback
            if variant and "positional argument" in str(cause):
                raise UserError(f"--config={argument}: {name} has no variants; leave out :{variant[0]}") from error
            reason = str(cause) if isinstance(cause, ValueError) else f"{type(cause).__name__}: {cause}"
            raise UserError(f"--config={argument}: {reason}") from error
        fields = dict(config_lib.flatten(config))
        if wrong := fields.keys() ^ dict(config_lib.flatten(config_lib.default())):
            raise UserError(
                f"--config={argument} has unknown fields or lacks some: {', '.join(sorted(wrong)[:5])}; "
                "start from mvlm_jax.config.default(), and set sizes by config.update(model_size(…))"
            )
        return config


class _PathParser(flags.ArgumentParser):
    syntactic_help = "a path"

    def __init__(self, takes: Collection[str]):
        self._takes = takes

    def parse(self, argument: str | Path) -> Any:
        if not str(argument):
            raise ValueError("it is empty; give a path")
        if HUB_NAME in self._takes and hub.is_name(argument):
            return str(argument)
        try:
            if FILE in self._takes or FOLDER in self._takes:
                return mirror.local_path(argument, as_file=FILE in self._takes)
            return user_path(argument)
        except UserError as error:
            raise ValueError(str(error)) from error


def _is_ours_or_urgent(record: LogRecord) -> bool:
    # The libraries report every file they touch, which would bury the progress lines. What Orbax cannot write or read
    # comes to us as an exception too, and is reported once; so does what ml_collections finds wrong with a recipe.
    # Orbax's futures are all that uses asyncio.
    if "/orbax/" in record.pathname or "/ml_collections/" in record.pathname or record.name == "asyncio":
        return False
    return record.levelno >= WARNING or "/mvlm_jax/" in record.pathname


def _refuse(name: str, error: Exception) -> int:
    message = str(error)
    # ConfigDict nests its errors, each with quotes and escapes of its own: only the names in them are legible.
    names = re.search(r"(?:Key\W+)?(\w+)(?:.*Did you mean\W+(\w+))?", message.replace("\\n", " "), re.DOTALL)
    if names and _is_of_a_field(error):
        message = f"the config has no field {names[1]!r}" + (f"; did you mean {names[2]!r}?" if names[2] else "")
    message = mirror.shown(" ".join(message.split()))
    print(f"mvlm {name}: {message}", file=sys.stderr)
    return RunError.status if isinstance(error, RunError) else UserError.status


def _is_of_a_field(error: Exception) -> bool:
    """Whether a ConfigDict was asked for a field that it does not have."""
    return isinstance(error, KeyError) or (
        isinstance(error, AttributeError) and any(isinstance(cause, KeyError) for cause in error.args)
    )


def _raised_while_parsing(error: BaseException) -> bool:
    traceback, files = error.__traceback__, []
    while traceback is not None:
        files.append(traceback.tb_frame.f_code.co_filename)
        traceback = traceback.tb_next
    return any("config_flags" in name for name in files)


def _flag_help(values: flags.FlagValues) -> str:
    return "\n".join(f"  --{name}: {' '.join(values[name].help.split())}" for name in sorted(values))
