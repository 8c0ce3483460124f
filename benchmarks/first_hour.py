"""What a newcomer does with the README in hand, step by step as it is written there, with the seconds that each takes.

The commands and the program are read from README.md itself: install, the demo, the export, the program, a search. They
run in a fresh clone and a fresh environment, with empty caches of packages and of compiled programs. The folder that is
searched holds drawn scenes, or what --images names. The last line is one JSON object; its `picture` is when the
demo's picture was there, in seconds from the start.

Example:
  python benchmarks/first_hour.py --directory=runs/first_hour

With --environment=DIR an environment that is there already is used and nothing is installed, and --fields makes the
demo smaller: both are for trying this program.
"""

import argparse
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
PROGRAM = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
COMMANDS = {  # the beginning of each command in the README, by what it is for; in this order
    "install": "pip install ",
    "demo": "make demo",
    "export": "mvlm weights export ",
    "search": "mvlm search ",
}
CLONE = "mvlm-jax"
PICTURE = Path("runs", "demo", "reconstruction.png")
# A cache that the environment names would be no newcomer's.
CACHES = ("JAX_", "PIP_CACHE", "XDG_CACHE")
MAKE = ("MAKE", "MFLAGS")  # what a make that runs this program would hand on to the one of the demo


class Failure(Exception):
    """Why the path cannot be gone to its end."""


class Step(NamedTuple):
    """What is done, and how long it took."""

    name: str
    command: str
    seconds: float


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--directory", required=True, type=Path, help="made for the clone and the caches")
    parser.add_argument("--images", type=Path, help="folder to search; default: drawn scenes")
    parser.add_argument("--python", default=sys.executable, help="the Python that makes the environment")
    parser.add_argument("--environment", type=Path, help="an environment with the packages, in place of a new one")
    parser.add_argument("--checkout", type=Path, help="a checkout, in place of a fresh clone; `runs` is made in it")
    parser.add_argument("--fields", default="", help="flags for the demo's training: '--config.steps=100 …'")
    arguments = parser.parse_args(argv)
    started = time.time()
    try:
        steps = list(walked(arguments))
    except Failure as failure:
        print(f"first_hour.py: {failure}", file=sys.stderr)
        return 1
    seconds = {step.name: step.seconds for step in steps} | {"total": sum(step.seconds for step in steps)}
    clone = arguments.checkout or arguments.directory / CLONE
    seconds["picture"] = (clone / PICTURE).stat().st_mtime - started
    print(json.dumps({name: round(value, 1) for name, value in seconds.items()}))
    return 0


def walked(arguments: argparse.Namespace) -> Iterator[Step]:
    """The steps, each as soon as it is done.

    Raises:
      Failure: a step that the README does not have, or one that fails.
    """
    directory = arguments.directory.absolute()
    if directory.exists():
        raise Failure(f"--directory={arguments.directory} exists; give a new one")
    directory.mkdir(parents=True)
    clone = arguments.checkout.absolute() if arguments.checkout else directory / CLONE
    environment = arguments.environment.absolute() if arguments.environment else directory / "environment"
    variables = surroundings(directory, environment, keep_caches=arguments.environment is not None)

    def step(name: str, command: Sequence[str | Path], *, shown: str = "") -> Step:
        words = [str(word) for word in command]
        start = time.monotonic()
        run(words, where=clone if clone.is_dir() else directory, variables=variables, log=directory / f"{name}.log")
        made = Step(name, shown or shlex.join(words), time.monotonic() - start)
        print(f"{made.seconds:8.1f} s  {made.name:12} {made.command}", flush=True)
        return made

    if not arguments.checkout:
        yield step("clone", ["git", "clone", "--quiet", ROOT, clone])
    commands, program = readme(clone / "README.md")
    if not arguments.environment:
        yield step("environment", [arguments.python, "-m", "venv", environment])
        yield step("install", commands["install"])
    demo = commands["demo"]
    if arguments.environment:
        demo = [*demo, f"VENV={environment}"]
    if arguments.fields:
        demo = [*demo, f"DEMO={arguments.fields}"]
    yield step("demo", demo)
    if not (clone / PICTURE).is_file():
        raise Failure(f"the demo has left no {PICTURE}")
    yield step("export", commands["export"])
    python = environment / "bin" / "python"
    yield step("program", [python, "-c", program], shown="the program of the README")
    images = arguments.images.absolute() if arguments.images else drawn(directory / "images", python, variables, clone)
    [output] = [word.partition("=")[2] for word in commands["export"] if word.startswith("--output=")]
    yield step("search", search_in(commands["search"], images=images, model=output))


def readme(file: Path) -> tuple[dict[str, list[str]], str]:
    """The first command of each kind in the README, and its first program.

    Raises:
      Failure: it has none of some kind.
    """
    text = file.read_text("utf-8")
    found = {}
    for name, beginning in COMMANDS.items():
        line = next((line.strip() for line in text.splitlines() if line.strip().startswith(beginning)), None)
        if line is None:
            raise Failure(f"{file} has no command that begins with {beginning!r}")
        found[name] = shlex.split(line, comments=True)
    program = PROGRAM.search(text)
    if program is None:
        raise Failure(f"{file} has no program in Python")
    return found, program[1]


def search_in(command: Sequence[str], *, images: Path, model: str) -> list[str]:
    """The README's search with the folder and the model that are here: a flag's value is only an example."""
    replaced = {"--images": images, "--model": model}
    return [f"{name}={replaced[name]}" if (name := word.partition("=")[0]) in replaced else word for word in command]


def drawn(folder: Path, python: Path, variables: Mapping[str, str], clone: Path) -> Path:
    """200 scenes as the demo's, which a newcomer would have in the place of photographs."""
    program = (
        "import sys\nfrom pathlib import Path\n"
        "from mvlm_jax.data.builders.shapes import render, scenes\n"
        "for number, (_, scene) in enumerate(scenes(counts={'val': 200, 'test': 0, 'train': 0}, seed=1)):\n"
        "    render(scene).save(Path(sys.argv[1], f'{number:03}.png'))\n"
    )
    folder.mkdir()
    log = folder.with_name("drawing.log")
    run([str(python), "-c", program, str(folder)], where=clone, variables=variables, log=log)
    return folder


def surroundings(directory: Path, environment: Path, *, keep_caches: bool) -> dict[str, str]:
    """The variables of a newcomer's shell, in which the environment is active."""
    dropped = MAKE if keep_caches else (*MAKE, *CACHES, "PYTHONPATH")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
    if not keep_caches:
        kept |= {"XDG_CACHE_HOME": str(directory / "cache"), "PIP_CACHE_DIR": str(directory / "cache" / "pip")}
    path = os.pathsep.join([str(environment / "bin"), os.environ["PATH"]])
    return kept | {"PATH": path, "VIRTUAL_ENV": str(environment)}


def run(command: Sequence[str], *, where: Path, variables: Mapping[str, str], log: Path) -> None:
    """Runs a command; what it prints goes into `log`.

    Raises:
      Failure: the command is not found, or ends with another status than 0.
    """
    program = shutil.which(command[0], path=variables["PATH"])
    if program is None:
        raise Failure(f"{log.stem}: there is no program {command[0]!r}")
    with log.open("w") as printed:
        done = subprocess.run([program, *command[1:]], cwd=where, env=dict(variables), stdout=printed, stderr=printed)
    if done.returncode:
        raise Failure(f"{log.stem}: {shlex.join(command)[:200]} ended with status {done.returncode}; see {log}")


if __name__ == "__main__":
    sys.exit(main())
