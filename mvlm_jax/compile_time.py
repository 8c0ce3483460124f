"""What a command says of the time in which it compiles, so that nobody waits without a word."""

import contextlib
import time
from collections.abc import Iterator

import jax
from absl import logging

from mvlm_jax.allocator import release_free_memory

COMPILED = "/jax/core/compile/backend_compile_duration"  # with the time to read it, where it was in the cache
READ = "/jax/compilation_cache/cache_retrieval_time_sec"


class CompileTime:
    """Seconds of a block, and those of them that JAX spends on programs, in any thread."""

    def __init__(self) -> None:
        self.all = self.compiling = self.reading = 0.0

    def __enter__(self) -> "CompileTime":
        jax.monitoring.register_event_duration_secs_listener(self._add)
        self._started = time.monotonic()
        return self

    def __exit__(self, *_) -> None:
        self.all = time.monotonic() - self._started
        jax.monitoring.unregister_event_duration_listener(self._add)

    def _add(self, event: str, duration_secs: float, **_: str | int) -> None:
        if event == COMPILED:
            self.compiling += duration_secs
        elif event == READ:
            self.reading += duration_secs
            self.compiling -= duration_secs


@contextlib.contextmanager
def compiling(program: str) -> Iterator[None]:
    """Logs that a program is compiled in the block, and then how long it took, or that it was read from the cache.

    The memory that the compiler has freed goes back to the system.
    """
    logging.info("compiling %s ...", program)
    with CompileTime() as spent:
        yield
    release_free_memory()
    if spent.reading > spent.compiling:
        logging.info("read %s from the cache in %.1f s", program, spent.all)
    else:
        logging.info("compiled %s in %.1f s", program, spent.all)


@contextlib.contextmanager
def timed(work: str) -> Iterator[None]:
    """Logs that work begins, how long it took, and what part of that JAX compiled or read compiled programs."""
    logging.info("%s ...", work)
    with CompileTime() as spent:
        yield
    parts = {"compiling": spent.compiling, "reading compiled programs": spent.reading}
    shares = [f"{seconds:.1f} s {name}" for name, seconds in parts.items() if seconds >= 0.05]
    logging.info("%s took %.1f s%s", work, spent.all, f" ({', '.join(shares)})" if shares else "")
