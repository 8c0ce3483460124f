"""What is launched: a name, the words of `mvlm train`, and where its results go."""

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path

from mvlm_jax.errors import UserError
from mvlm_jax.launching import buckets

STOPPED = 75  # exit status of a run that a signal stopped; see docs/interruption.md
PORT = 8482  # where process 0 waits for the others, unless the platform says it by itself
WRONG = UserError.status  # of one that was given something wrong: starting it again cannot help
NOTICE_SECONDS = 300  # between the signal to stop and the end, for the step in progress and its checkpoint


@dataclasses.dataclass(frozen=True)
class Job:
    """
    Attributes:
      name: of the run, and of what is made for it.
      config: `--config=…` and its overrides as they were given; empty where nothing is trained.
      workdir: as it was given; "" where it was not.
      buckets: to be mounted, beside those that the words name.
    """

    name: str
    config: tuple[str, ...] = ()
    workdir: str = ""
    buckets: tuple[str, ...] = ()

    def train(self, *, recipe: str | None = None) -> list[str]:
        """The words after `mvlm` on the machine.

        Args:
          recipe: path of the recipe there, where it is a file that is sent along.
        """
        config = list(self.config)
        if recipe is not None:
            config[0] = f"--config={recipe}" + "".join(self.recipe_name.partition(":")[1:])
        return ["train", *config, f"--workdir={self.local_workdir}", f"--stopped_status={STOPPED}"]

    @property
    def local_workdir(self) -> str:
        """The workdir as a path on a machine that has its bucket mounted."""
        return buckets.mounted(self.workdir)

    @property
    def recipe_name(self) -> str:
        return self.config[0].partition("=")[2]

    @property
    def recipe_file(self) -> Path | None:
        """The recipe where it is a file rather than a shipped one."""
        file = Path(self.recipe_name.partition(":")[0]).expanduser()
        return file if file.is_file() else None

    @property
    def mounts(self) -> list[str]:
        """The buckets whose files the run reads and writes."""
        return sorted({*self.buckets, *buckets.named([self.local_workdir, *self.config])})

    def check_bucket_workdir(self) -> None:
        """
        Raises:
          UserError: the workdir is on the disk of a machine that is deleted when the run ends.
        """
        if not buckets.named([self.local_workdir]):
            raise UserError(
                f"--workdir={self.workdir} would be lost with the machine; give gs://BUCKET/PATH, which all hosts see"
            )

    def check_image_recipe(self) -> None:
        """
        Raises:
          UserError: the recipe is a file that an image made from this checkout does not have in the same place.
        """
        if self.recipe_file is not None and self.recipe_file.is_absolute():
            raise UserError(
                f"--config={self.recipe_name} is a file of this machine; build an image from a checkout that has it, "
                "and give its path from the root of that checkout"
            )


def config_words(argv: Sequence[str]) -> tuple[str, ...]:
    """`--config` and its overrides among the words of a command line, unchanged, `--config` first.

    A value that stands in a word of its own is joined to its flag.
    """
    found = []
    words = iter(enumerate(argv))
    for place, word in words:
        if not re.match(r"--?(no)?config([.=]|$)", word):
            continue
        word = "--" + word.lstrip("-")
        following = argv[place + 1 : place + 2]
        if "=" not in word and not word.startswith("--no") and following and not following[0].startswith("-"):
            word = f"{word}={next(words)[1]}"
        found.append(word)
    return tuple(sorted(found, key=lambda word: not word.startswith("--config=")))


def check_name(name: str, *, longest: int) -> None:
    """
    Raises:
      UserError: a name that the providers would refuse, later and in other words.
    """
    if not re.fullmatch(rf"[a-z]([a-z0-9-]{{0,{longest - 2}}}[a-z0-9])?", name):
        raise UserError(
            f"--name={name!r} must begin with a small letter, end with one or a digit, hold nothing but these and "
            f"hyphens, and have at most {longest} characters"
        )
