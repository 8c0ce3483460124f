"""Compiled programs that the next start reads, and what is said where they cannot be kept."""

import logging
import os
import shutil
import socket
import subprocess
import sys
import warnings

import jax
import jax.numpy as jnp
import pytest
from jax.experimental.compilation_cache import compilation_cache as jax_cache
from tiny import ROOT

from mvlm_jax import compilation_cache as cache
from mvlm_jax.compile_time import CompileTime, compiling, timed
from mvlm_jax.errors import UserError


@pytest.fixture
def nothing_set(monkeypatch, tmp_path):
    """JAX as a user starts it who has set nothing, but that it keeps what compiles fast too."""
    monkeypatch.setattr(cache, "_used", None)
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    before = {name: getattr(jax.config, name) for name in ("jax_compilation_cache_dir", *cache.OPTIONS)}
    assert before["jax_persistent_cache_min_compile_time_secs"] == 0
    jax.config.update("jax_compilation_cache_dir", None)
    jax_cache.reset_cache()
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    jax_cache.reset_cache()
    jax.clear_caches()


def run(*, factor=3):
    """Compiles a program as a new process does, or reads it; whether it was read."""
    jax.clear_caches()

    @jax.jit
    def program(x):
        return x * factor

    x = jnp.arange(3)  # compiles programs of its own
    with CompileTime() as spent:
        assert program(x).tolist() == [0, factor, 2 * factor]
    return spent.reading > 0


def entries(directory):
    return sorted(directory.glob("jit_program-*-cache"))


@pytest.mark.parametrize("xdg, place", [("{}/xdg", "xdg"), ("relative", ".cache"), ("", ".cache")])
def test_auto_is_the_cache_directory_of_the_user(nothing_set, tmp_path, monkeypatch, xdg, place):
    monkeypatch.setenv("XDG_CACHE_HOME", xdg.format(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    directory = cache.find("auto")
    assert directory == tmp_path / place / "mvlm-jax" / "compiled"
    assert directory.stat().st_mode & 0o777 == 0o700


def test_a_program_is_read_at_the_next_start(nothing_set):
    directory = cache.find("auto")
    cache.use(directory)
    assert [run(), run()] == [False, True]
    assert len(entries(directory)) == 1
    cache.use(cache.find("off"))
    assert run() is False


def test_a_process_may_change_the_directory(nothing_set, tmp_path):
    for name in ("one", "two"):
        cache.use(cache.find(str(tmp_path / name)))
        assert run() is False
        assert len(entries(tmp_path / name)) == 1


@pytest.mark.parametrize(
    "option, value", [("jax_compilation_cache_dir", "/users/own"), ("jax_enable_compilation_cache", False)]
)
def test_what_is_set_through_jax_stays(nothing_set, tmp_path, option, value):
    before = {name: getattr(jax.config, name) for name in ("jax_compilation_cache_dir", *cache.OPTIONS)}
    default = getattr(jax.config, option)
    jax.config.update(option, value)
    try:
        for setting in ("auto", "off", str(tmp_path / "other")):
            cache.use(cache.find(setting))
        assert {name: getattr(jax.config, name) for name in before} | {option: value} == before | {option: value}
        assert getattr(jax.config, option) == value
        assert list(tmp_path.iterdir()) == []
    finally:
        jax.config.update(option, default)


def test_a_directory_that_cannot_be_used_is_one_warning(nothing_set, tmp_path, monkeypatch, caplog):
    (tmp_path / "file").touch()
    open_to_all = tmp_path / "mvlm-jax" / "compiled"
    open_to_all.mkdir(parents=True)
    open_to_all.chmod(0o777)
    for base, setting, reason in [
        (None, str(tmp_path / "file"), f"{tmp_path}/file cannot be used (File exists)"),
        (None, str(tmp_path / "file" / "inner"), f"{tmp_path}/file/inner cannot be used (Not a directory)"),
        (None, "/proc/none", "/proc/none cannot be used (No such file or directory)"),
        (tmp_path, "auto", f"{open_to_all} cannot be used (other users can write there)"),
    ]:
        if base:
            monkeypatch.setenv("XDG_CACHE_HOME", str(base))
        caplog.clear()
        assert cache.find(setting) is None
        [record] = caplog.records
        assert reason in record.message and record.levelno == logging.WARNING and "\n" not in record.message


@pytest.mark.parametrize("setting, message", [("", "must be auto, off or a dir"), ("gs://a", "is not a local path")])
def test_a_setting_that_is_none_is_refused(nothing_set, setting, message):
    with pytest.raises(UserError, match=f"config.compilation_cache='{setting}' {message}"):
        cache.find(setting)


@pytest.mark.parametrize("damage", [b"", b"cut short"])
def test_a_damaged_entry_is_compiled_again_with_one_line_and_replaced(nothing_set, caplog, damage):
    directory = cache.find("auto")
    cache.use(directory)
    assert run() is False
    [entry] = entries(directory)
    entry.write_bytes(damage)
    assert run() is False
    [record] = caplog.records
    assert f"the cache of compiled programs in {directory} fails (" in record.message and "\n" not in record.message
    assert run() is True


def test_a_directory_that_fails_later_is_one_line_for_all_programs(nothing_set, caplog):
    directory = cache.find("auto")
    cache.use(directory)
    run()
    shutil.rmtree(directory)
    assert [run(factor=factor) for factor in (4, 5, 6)] == [False] * 3
    [record] = caplog.records
    assert f"{directory} fails (" in record.message and "No such file or directory" in record.message


def test_the_entries_read_last_stay_within_the_limit(tmp_path):
    for age, name in enumerate(["new", "old", "older", "oldest"]):
        file = tmp_path / f"{name}-cache"
        file.write_bytes(bytes(10))
        os.utime(file, (1000 - age, 0))
    (tmp_path / "of-the-user").write_bytes(bytes(100))
    cache.delete_oldest(tmp_path, max_bytes=25)
    assert {path.name for path in tmp_path.iterdir()} == {"new-cache", "old-cache", "of-the-user"}


def test_compiling_and_reading_are_said_with_their_time(nothing_set, caplog):
    caplog.set_level(logging.INFO)
    cache.use(cache.find("auto"))
    for _ in range(2):
        with compiling("the step"):
            run()
    lines = [record.message for record in caplog.records]
    assert lines[0] == lines[2] == "compiling the step ..."
    assert lines[1].startswith("compiled the step in ") and lines[3].startswith("read the step from the cache in ")
    caplog.clear()
    with timed("evaluating step 3"):
        jax.monitoring.record_event_duration_secs("/jax/core/compile/backend_compile_duration", 2.5)
    assert [record.message for record in caplog.records] == [
        "evaluating step 3 ...",
        "evaluating step 3 took 0.0 s (2.5 s compiling)",
    ]


SHARING = """
import sys
from pathlib import Path
from mvlm_jax.training import hosts
hosts.connect(coordinator_address=sys.argv[1], num_processes=2, process_id=int(sys.argv[2]))
shared, own = Path(sys.argv[3]), Path(sys.argv[3], sys.argv[2])
own.mkdir()
print(hosts.share(shared), hosts.share(own), hosts.share(shared if sys.argv[2] == "0" else None), hosts.share(None))
"""


@pytest.mark.slow
def test_a_directory_is_used_by_several_processes_only_where_all_see_the_same(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo"}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", SHARING, address, str(index), tmp_path],
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]
    try:
        said = [process.communicate(timeout=120)[0].splitlines()[-1] for process in started]  # gloo writes too
    finally:
        for process in started:
            process.kill()
    assert said == ["True False False False"] * 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "1"]
