import pytest
from stand_ins import StandIns

from mvlm_jax.launching import archive


@pytest.fixture
def tools(tmp_path, monkeypatch):
    folder = tmp_path / "tools"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setattr(archive, "FILES", ("LICENSE",))  # packing the whole program takes long
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return StandIns(folder)
