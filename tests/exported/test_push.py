"""An export that is pushed to the Hugging Face Hub, and read from there, against a server on loopback."""

import numpy as np
import pytest
from hub_server import TOKEN, environment, forget, serving

import mvlm_jax
from mvlm_jax.cli import weights
from mvlm_jax.interop.checkpoint import import_checkpoint
from mvlm_jax.tasks.registry import task_type


@pytest.fixture
def server(tmp_path):
    with serving(tmp_path / "home") as running:
        yield running


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_an_export_is_pushed_whole_and_read_back_by_its_name(server, demo_run, tmp_path, capsys):
    folder, again = tmp_path / "export", tmp_path / "again"
    flags = ["export", f"--workdir={demo_run}", "--push=hf:me/model"]
    with environment(HF_TOKEN=TOKEN):
        assert weights.run([*flags, f"--output={folder}"]) == 0
        [pushed] = server.repositories["me/model"].refs.values()
        out, err = capsys.readouterr()
        assert out.splitlines()[-1] == f"pushed to {server.address}/me/model/commit/{pushed}"
        assert TOKEN not in out + err
        assert server.repositories["me/model"].private
        held = dict(server.repositories["me/model"].commits[pushed])
        assert held.pop(".gitattributes") == b"" and held == contents(folder)
        # Into another branch of what is there already.
        assert weights.run([*flags[:2], "--push=hf:me/model@old", f"--output={again}", "--step=4"]) == 0
        assert server.repositories["me/model"].refs["main"] == pushed
        forget()
        model, local = mvlm_jax.load("hf:me/model"), mvlm_jax.load(folder)
        np.testing.assert_array_equal(model.encode_text(["a circle"]), local.encode_text(["a circle"]))
        start = import_checkpoint("hf:me/model", shapes=shapes_of(model), config=model.config)
        assert start.report["loaded"][0]["revision"] == pushed
        capsys.readouterr()
        assert weights.run(["inspect", "--source=hf:me/model/image_encoder@old"]) == 0
        assert "named as" in capsys.readouterr().out


def shapes_of(model):
    return task_type(model.config).parameter_shapes(model.config)


@pytest.mark.parametrize(
    "target, variables, message",
    [
        ("hf:me/model", {}, "--push=hf:me/model needs a login at http://127.0.0.1"),
        ("hf:me/model", {"HF_TOKEN": TOKEN, "HF_HUB_OFFLINE": "1"}, "needs the network, and HF_HUB_OFFLINE is set"),
        ("me/model", {"HF_TOKEN": TOKEN}, "is no name on the Hugging Face Hub; it is written hf:owner/name[@branch]"),
        ("hf:me/model/part", {"HF_TOKEN": TOKEN}, "is a folder of a repository; give the repository, hf:me/model"),
    ],
    ids=["no login", "offline", "no name", "folder"],
)
def test_a_push_that_cannot_be_is_refused_before_anything_is_written(
    target, variables, message, server, demo_run, tmp_path, capsys
):
    folder = tmp_path / "export"
    with environment(**variables):
        assert weights.run(["export", f"--workdir={demo_run}", f"--push={target}", f"--output={folder}"]) == 2
    assert message in capsys.readouterr().err
    assert not folder.exists() and server.requests == []


@pytest.mark.parametrize(
    "target, token, command",
    [
        ("hf:others/model", TOKEN, "hf upload --private others/model '{}'"),
        ("hf:me/model@old", "hf_wrong", "hf upload --private me/model '{}' --revision old"),
    ],
)
def test_a_push_that_the_hub_refuses_leaves_the_folder_and_says_how_to_go_on(
    target, token, command, server, demo_run, tmp_path, capsys
):
    folder = tmp_path / "an export"
    with environment(HF_TOKEN=token):
        assert weights.run(["export", f"--workdir={demo_run}", f"--push={target}", f"--output={folder}"]) == 2
    err = capsys.readouterr().err
    assert f"{target} cannot be pushed to {server.address}: it answered 40" in err and token not in err
    assert err.endswith(f"; {folder} is written, and {command.format(folder)} tries again\n")
    assert (folder / "model.safetensors").is_file()
