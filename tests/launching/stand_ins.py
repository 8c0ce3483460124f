"""Stand-ins for the tools of the providers: they record their words, and fail or answer as a test says."""

import shlex
from pathlib import Path

# Every word ends with a NUL, every command with two. Files that are given are copied, standard input is kept.
PROGRAM = r"""#!/bin/sh
{{ printf '%s\000' {name} "$@"; printf '\000'; }} >> {folder}/record
for word; do
  case $word in
    startup-script=*|*=startup-script=*) /bin/cp "${{word##*startup-script=}}" {folder}/startup.sh ;;
    --config=/*) /bin/cp "${{word#--config=}}" {folder}/config.json ;;
    *.tar.gz) [ -f "$word" ] && /bin/cp "$word" {folder}/code.tar.gz ;;
  esac
done
case "{name} $*" in sbatch*|*--filename=-*) /bin/cat > {folder}/stdin ;; esac
while IFS= read -r pattern; do
  case "{name} $*" in $pattern) exit 3 ;; esac
done < {folder}/failing
while IFS='|' read -r pattern answer; do
  case "{name} $*" in $pattern) printf '%b\n' "$answer" ;; esac
done < {folder}/answers
exit 0
"""
TOOLS = ("gcloud", "kubectl", "sbatch", "squeue", "scancel", "tail")


class StandIns:
    """Of a folder that is the whole PATH, so that no tool of this machine can be reached."""

    def __init__(self, folder: Path):
        self.folder = folder
        for name in TOOLS:
            program = folder / name
            program.write_text(PROGRAM.format(name=name, folder=shlex.quote(str(folder))))
            program.chmod(0o755)
        # What is looked for is not there, unless a test says so.
        self.fail()
        self.answer()

    def fail(self, *patterns: str) -> None:
        self._write("failing", patterns)

    def answer(self, **answers: str) -> None:
        """What a command prints that has the name among its words, `-` being written as `_` and a space as `__`."""
        patterns = {name.replace("__", " ").replace("_", "-"): answer for name, answer in answers.items()}
        self._write("answers", [f"*{pattern}*|{answer}" for pattern, answer in patterns.items()])

    def commands(self) -> list[list[str]]:
        """What was started, in order."""
        record = self.folder / "record"
        if not record.exists():
            return []
        return [words.split("\0") for words in record.read_text().split("\0\0")[:-1]]

    def command(self, *words: str) -> list[str]:
        """The one command that has all these words."""
        [found] = [command for command in self.commands() if set(words) <= set(command)]
        return found

    def text(self, name: str) -> str:
        return (self.folder / name).read_text()

    def _write(self, name: str, lines) -> None:
        (self.folder / name).write_text("".join(f"{line}\n" for line in lines))
