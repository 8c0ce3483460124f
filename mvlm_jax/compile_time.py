"""What a command says of the time in which it compiles, so that nobody waits without a word."""

import contextlib
import time
from collections.abc import Iterator

import jax
from absl import logging

COMPILED = "/jax/core/compile/backend_compile_duration"  # with the time to read it, where it was in the cache
READ = "/jax/compilation_cache/cache_retrieval_time_sec"


class CompileTime:
    """Seconds that JAX spends in a block, in any thread."""

    def __init__(self) -> None:
        self.compiling = self.reading = 0.0

    def __enter__(self) -> "CompileTime":
        jax.monitoring.register_event_duration_secs_listener(self._add)
        return self

    def __exit__(self, *_) -> None:
        jax.monitoring.unregister_event_duration_listener(self._add)

    def _add(self, event: str, duration_secs: float, **_: str | int) -> None:
        if event == COMPILED:
            self.compiling += duration_secs
        elif event == READ:
            self.reading += duration_secs
            self.compiling -= duration_secs


@contextlib.contextmanager
def compiling(program: str) -> Iterator[None]:
    """Logs that a program is compiled in the block, and then how long it took, or that it was read from the cache."""
    logging.info("compiling %s ...", program)
    started = time.monotonic()
    with CompileTime() as spent:
        yield
    seconds = time.monotonic() - started
    if spent.reading > spent.compiling:
        logging.info("read %s from the cache in %.1f s", program, seconds)
    else:
        logging.info("compiled %s in %.1f s", program, seconds)


@contextlib.contextmanager
def timed(work: str) -> Iterator[None]:
    """Logs that work begins, how long it took, and what part of that JAX compiled or read compiled programs."""
    logging.info("%s ...", work)
    started = time.monotonic()
    with CompileTime() as spent:
        yield
    parts = {"compiling": spent.compiling, "reading compiled programs": spent.reading}
    shares = [f"{seconds:.1f} s {name}" for name, seconds in parts.items() if seconds >= 0.05]
    logging.info("%s took %.1f s%s", work, time.monotonic() - started, f" ({', '.join(shares)})" if shares else "")
