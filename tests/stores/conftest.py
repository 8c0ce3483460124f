import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from mvlm_jax.stores import mirror, objects

ROOT = Path(__file__).parents[2]
PYTHON = Path(os.environ.get("MVLM_EMULATORS", ROOT / ".venv-emulators" / "bin" / "python"))


@pytest.fixture
def copies(tmp_path, monkeypatch):
    """Copies of stores lie below the test's directory, and there are none yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(mirror, "_root", None)
    monkeypatch.setattr(mirror, "_mirrors", {})


@pytest.fixture
def bucket(tmp_path, monkeypatch, copies):
    """The directory that stands for gs://bucket and s3://bucket, with the conditions and generations of a store."""
    folder = tmp_path / "bucket"
    folder.mkdir()

    def spec(address):
        return {"driver": "file", "path": f"{tmp_path / address.bucket / address.path}/"}

    monkeypatch.setattr(objects, "_spec", spec)
    return folder


@pytest.fixture(scope="session")
def emulated():
    """The environment in which gs://bucket and s3://bucket are emulated on this machine."""
    if not PYTHON.exists():
        pytest.skip(f"no emulators: there is no {PYTHON}, which make slow installs; MVLM_EMULATORS names another")
    ports = {}
    servers = []
    for kind in ("gs", "s3"):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            ports[kind] = free.getsockname()[1]
        command = [PYTHON, Path(__file__).with_name("emulators.py"), kind, str(ports[kind])]
        servers.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True))
    try:
        for server in servers:
            assert server.stdout.readline() == "ready\n"
        yield {
            "TENSORSTORE_GCS_HTTP_URL": f"http://127.0.0.1:{ports['gs']}",
            "GOOGLE_AUTH_TOKEN_FOR_TESTING": "nothing",
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{ports['s3']}",
            "AWS_ACCESS_KEY_ID": "nobody",
            "AWS_SECRET_ACCESS_KEY": "nothing",
            "AWS_EC2_METADATA_DISABLED": "true",
        }
    finally:
        for server in servers:
            server.kill()
            server.wait()


@pytest.fixture
def emulators(emulated, copies, monkeypatch):
    """This process works in that environment."""
    for name, value in emulated.items():
        monkeypatch.setenv(name, value)
    return emulated


sys.path.append(str(ROOT / "tests" / "training"))  # for toy.py and toy_hosts.py
