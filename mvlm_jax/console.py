"""What a command shows on stderr: a line for each message, and in a terminal a progress bar below the lines."""

import contextlib
import logging as standard_logging
import os
import sys
import threading
from collections.abc import Callable, Iterator

from absl import logging
from tqdm import tqdm

from mvlm_jax.stores import mirror

NARROWEST = 40  # columns of a terminal that a bar is drawn in


class Lines(standard_logging.Handler):
    """A plain line for each message, with its level in front where it is a warning or worse."""

    def __init__(self, keep: Callable[[standard_logging.LogRecord], bool]):
        """`keep` says which messages are shown."""
        super().__init__()
        self.addFilter(keep)

    def format(self, record: standard_logging.LogRecord) -> str:
        message = mirror.shown(super().format(record))
        if self.formatter is not None or record.levelno < standard_logging.WARNING:
            return message
        return f"{record.levelname.lower()}: {message}"

    def emit(self, record: standard_logging.LogRecord) -> None:
        try:
            with _above_bar():
                print(self.format(record), file=sys.stderr, flush=True)
        except Exception:
            self.handleError(record)


def show_lines(*, keep: Callable[[standard_logging.LogRecord], bool]) -> None:
    """Shows messages from now on as plain lines; a later call replaces what an earlier one set up."""
    root = standard_logging.getLogger()
    for handler in list(root.handlers):
        # Libraries set up handlers for stderr when something is logged while they are imported.
        to_stderr = isinstance(handler, standard_logging.StreamHandler) and handler.stream is sys.stderr
        if to_stderr or isinstance(handler, Lines) or handler is logging.get_absl_handler():
            root.removeHandler(handler)
    root.addHandler(Lines(keep))
    logging.set_verbosity(logging.INFO)


def show_prefixes() -> None:
    """Puts the level, the time and the place in the code before each line, as absl does."""
    for handler in standard_logging.getLogger().handlers:
        if isinstance(handler, Lines):
            handler.setFormatter(logging.PythonFormatter())


class Progress:
    """How far a run is: a bar where stderr is a terminal, a line for each report elsewhere."""

    def __init__(self, *, first: int, steps: int, shown: bool = True):
        """
        Args:
          first: step that the run starts from.
          shown: whether this process shows anything.
        """
        self._steps = steps
        self._shown = shown
        self._bar: tqdm | None = None
        if shown and in_terminal():
            # The lock that tqdm would make by default starts a process, which then outlives a killed run.
            tqdm.set_lock(threading.RLock())
            self._bar = tqdm(
                total=steps,
                initial=first,
                file=sys.stderr,
                leave=False,
                dynamic_ncols=True,
                bar_format="step {n_fmt}/{total_fmt} |{bar:20}| {percentage:.0f}%{postfix}",
            )

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_) -> None:
        if self._bar is not None:
            self._bar.close()

    def step_done(self) -> None:
        if self._bar is not None:
            self._bar.update()

    def report(self, step: int, words: str) -> None:
        """`words` say how the step went."""
        if self._bar is not None:
            self._bar.set_postfix_str(words)
        elif self._shown:
            logging.info("step %d/%d  %s", step, self._steps, words)


def in_terminal() -> bool:
    """Whether stderr is a terminal that is wide enough for a bar; some do not tell how wide they are."""
    try:
        return sys.stderr.isatty() and os.get_terminal_size(sys.stderr.fileno()).columns >= NARROWEST
    except (AttributeError, OSError, ValueError):
        return False


@contextlib.contextmanager
def _above_bar() -> Iterator[None]:
    if getattr(tqdm, "_instances", None):
        with tqdm.external_write_mode(file=sys.stderr):
            yield
    else:
        yield
