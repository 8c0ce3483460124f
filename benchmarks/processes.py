"""Contenders in processes of their own: requests on standard input, answers on standard output, a line of JSON each."""

import contextlib
import importlib
import json
import os
import queue
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# The module of each contender, which has it in its `CONSTRUCTORS`.
MODULES = {
    "jax": "contenders",
    "torch_eager": "contenders",
    "torch_compiled": "contenders",
    "jax_inference": "inference",
    "torch_inference": "inference",
    "transformers": "inference",
}
OPTIONAL = ("torch", "transformers")  # packages that only some machines have


class NotMeasured(Exception):
    """The reason why a contender has no row."""


class Late(NotMeasured):
    """The deadline came first."""

    def __init__(self) -> None:
        super().__init__("the deadline came first")


class NotHere(NotMeasured):
    """A package that is not installed, or a setting that this device does not have: no failure of the contender."""


def serve(name: str, setup: Mapping[str, Any]) -> None:
    """A contender's process: answers each request until standard input ends."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # keeps what libraries print out of the answers
    contender = None
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if contender is None:
                contender = construct(name, setup)
            answer = getattr(contender, request["call"])(*request["arguments"])
        except Exception as error:  # a contender that cannot run gets a row that says so
            answer = refusal(error)
        answers.write(json.dumps(answer) + "\n")


def construct(name: str, setup: Mapping[str, Any]) -> Any:
    module = importlib.import_module(MODULES[name])
    return module.CONSTRUCTORS[name](module.Setup(**setup))


def refusal(error: Exception) -> dict[str, str]:
    """What the contender's process answers in place of a result."""
    if isinstance(error, ModuleNotFoundError) and (error.name or "").partition(".")[0] in OPTIONAL:
        return {"not_here": f"not on this machine: {error.name}"}
    if isinstance(error, NotHere):
        return {"not_here": str(error)}
    traceback.print_exception(error)
    return {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"}


class Contender:
    """A contender's process, as the main process uses it."""

    def __init__(self, name: str, setup: Mapping[str, Any], *, deadline: float):
        """
        Args:
          deadline: of `time.monotonic()`.
        """
        self.name, self._deadline = name, deadline
        root = Path(__file__).resolve().parents[1]
        paths = [str(root), os.environ.get("PYTHONPATH", "")]
        # By default JAX takes most of an accelerator's memory at once, and leaves none for the others.
        environment = os.environ | {
            "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        }
        self._process = subprocess.Popen(
            [sys.executable, __file__, name, json.dumps(dict(setup))],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
        )  # fmt: skip
        self._answers: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in self._process.stdout:
            self._answers.put(line)
        self._answers.put("")

    def ask(self, call: str, *arguments: Any) -> None:
        """Sends a request; `answer` waits for it.

        Raises:
          Late: the deadline has passed.
        """
        if time.monotonic() >= self._deadline:
            raise Late
        with contextlib.suppress(BrokenPipeError):
            print(json.dumps({"call": call, "arguments": arguments}), file=self._process.stdin, flush=True)

    def answer(self) -> dict[str, Any]:
        """
        Raises:
          NotMeasured: it failed, ended, or did not answer before the deadline.
        """
        try:
            line = self._answers.get(timeout=max(0.0, self._deadline - time.monotonic()))
        except queue.Empty:
            raise Late from None
        if not line:
            self._answers.put("")  # for whoever asks again
            raise NotMeasured(f"the process ended with status {self._process.wait()}")
        answer = json.loads(line)
        if "not_here" in answer:
            raise NotHere(answer["not_here"])
        if "error" in answer:
            raise NotMeasured(answer["error"])
        return answer

    def call(self, call: str, *arguments: Any) -> dict[str, Any]:
        self.ask(call, *arguments)
        return self.answer()

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


def alternate(
    contenders: list[Contender], *, rounds: int, arguments: tuple[Any, ...]
) -> dict[str, list[dict[str, Any]]]:
    """What `run` answers of each contender, one a round; they take turns, and the order is turned round each time.

    A turn begins with one run that is not measured. While the others had their turns, caches were filled with what is
    theirs, and a virtual machine may have given freed memory back to its host, from where it comes back slowly.

    At the deadline the whole rounds so far are what there is.

    Args:
      arguments: of `run`; the last one is how often.

    Raises:
      NotMeasured: not one round is whole, or a contender failed.
    """

    def turn(contender: Contender) -> dict[str, Any]:
        contender.call("run", *arguments[:-1], 1)
        return contender.call("run", *arguments)

    answers: dict[str, list[dict[str, Any]]] = {contender.name: [] for contender in contenders}
    for index in range(rounds):
        try:
            one = {
                contender.name: turn(contender) for contender in (contenders if index % 2 == 0 else contenders[::-1])
            }
        except Late:
            if index:
                break
            raise
        for name, answer in one.items():
            answers[name].append(answer)
    return answers


if __name__ == "__main__":
    import processes  # with the exceptions that contenders raise, not this copy of them

    from mvlm_jax import allocator

    if sys.argv[1].startswith("jax"):
        allocator.restart_with_huge_pages()  # as `mvlm train` does
    processes.serve(sys.argv[1], json.loads(sys.argv[2]))
