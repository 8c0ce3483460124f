import json
import os
import subprocess
import sys

import pytest

from mvlm_jax import allocator

RESTART = """
import json, os, sys
from mvlm_jax import allocator
allocator.restart_with_huge_pages()
print(json.dumps([sys.argv, os.environ.get("GLIBC_TUNABLES"), os.getpid()]))
"""
glibc = pytest.mark.skipif(not allocator._is_glibc(), reason="another C library")


def restarted(tunables: str | None, *arguments: str) -> tuple[list[str], str, int, int]:
    """(its argv, its tunables, its process id, that of the process which was started)"""
    environment = {name: value for name, value in os.environ.items() if name != allocator.TUNABLES}
    if tunables is not None:
        environment[allocator.TUNABLES] = tunables
    command = [sys.executable, "-W", "ignore::UserWarning", "-c", RESTART, *arguments]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        output, _ = process.communicate(timeout=60)
    return *json.loads(output), process.pid


@glibc
def test_a_restarted_process_has_its_arguments_and_its_id():
    arguments = ("--a=b c", "", "$(d)")
    argv, tunables, own, started = restarted(None, *arguments)
    assert argv == ["-c", *arguments]
    assert tunables == "glibc.malloc.hugetlb=1"
    assert own == started


@glibc
@pytest.mark.parametrize(
    "before, after",
    [
        ("glibc.malloc.arena_max=2", "glibc.malloc.arena_max=2:glibc.malloc.hugetlb=1"),
        ("", "glibc.malloc.hugetlb=1"),
        ("glibc.malloc.hugetlb=0", None),
        ("glibc.malloc.check=0:glibc.malloc.hugetlb=2", None),
    ],
)
def test_tunables_of_the_user_stay(before, after):
    environment = allocator.with_huge_pages({allocator.TUNABLES: before, "HOME": "/"})
    assert environment == (after and {allocator.TUNABLES: after, "HOME": "/"})


def test_another_c_library_is_left_alone(monkeypatch):
    monkeypatch.setattr(os, "confstr", lambda name: None)
    assert allocator.with_huge_pages({}) is None
    allocator.release_free_memory()


@glibc
def test_what_is_free_goes_back_to_the_system():
    code = """
from mvlm_jax import allocator
def resident():
    return int(open("/proc/self/statm").read().split()[1])
kept = [bytearray(60_000) for _ in range(4000)]  # too small for a mapping of their own
last = bytearray(60_000)  # so that the heap cannot shrink from its end
held = resident()
del kept
free = resident()
allocator.release_free_memory()
print(held, free, resident())
"""
    output = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60).stdout
    held, free, released = map(int, output.split())
    assert free > held / 2, "glibc gave it back by itself: the test shows nothing"
    assert released < held / 2


@glibc
@pytest.mark.parametrize("command, tunables", [("train", "glibc.malloc.hugetlb=1"), ("weights", None)])
def test_a_command_that_computes_has_huge_pages(command, tunables):
    environment = {name: value for name, value in os.environ.items() if name != allocator.TUNABLES}
    code = """
import os, sys
from mvlm_jax import __main__, cli
cli.main = lambda argv: print(argv, os.environ.get("GLIBC_TUNABLES")) or 3
sys.exit(__main__.main())
"""
    run = subprocess.run(
        [sys.executable, "-c", code, command, "--help"], env=environment, capture_output=True, text=True, timeout=60
    )
    assert (run.returncode, run.stdout) == (3, f"{[command, '--help']} {tunables}\n")
