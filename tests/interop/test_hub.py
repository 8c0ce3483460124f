"""Encoders by their names on the Hugging Face Hub, against a server on loopback."""

import os
import subprocess
import sys

import numpy as np
import pytest
from hub_server import TOKEN, environment, forget, serving
from sources import GOLDEN
from tiny import ROOT, recipe

from mvlm_jax.cli import weights
from mvlm_jax.data.text import train_tokenizer
from mvlm_jax.errors import UserError
from mvlm_jax.files import user_path
from mvlm_jax.interop import hub
from mvlm_jax.interop.importing import import_encoders, inspect
from mvlm_jax.tasks.registry import task_type
from mvlm_jax.tasks.tokenizer import open_tokenizer

# What a repository holds beside what is read.
OTHERS = {"pytorch_model__bin": b"a pickle", "README__md": b"", "train__py": b"", "onnx/model__safetensors": b""}


@pytest.fixture
def server(tmp_path):
    with serving(tmp_path / "home") as running:
        yield running


def started_from(source):
    """The import of an image encoder of the size of the golden ones."""
    config = recipe("demo")
    config.image.size, config.image_encoder.patch, config.init_from.image = 16, 4, str(source)
    config.image_encoder.update({"width": 16, "heads": 2, "layers": 2, "mlp_ratio": 2})
    return import_encoders(task_type(config).parameter_shapes(config), config=config, tokenizer=None)


def test_an_encoder_is_fetched_once_and_is_the_same_as_from_its_folder(server):
    commit = server.serve("tiny/vit", GOLDEN / "vit", **OTHERS)
    fetched, local = started_from("hf:tiny/vit"), started_from(GOLDEN / "vit")
    assert fetched.params.keys() == local.params.keys()
    for path, value in local.params.items():
        np.testing.assert_array_equal(fetched.params[path], value)
    [loaded] = fetched.report["loaded"]
    assert (loaded["source"], loaded["revision"]) == ("hf:tiny/vit", commit)
    assert f"  revision: {commit}" in fetched.lines
    assert server.fetched() == ["config.json", "model.safetensors"]
    inspect("hf:tiny/vit")
    assert server.requests == []
    forget()
    inspect("hf:tiny/vit")
    # Another start asks for the commit of the branch, and for nothing else.
    assert server.requests == [("GET", "/api/models/tiny/vit/revision/main")]
    server.requests.clear()
    inspect(f"hf:tiny/vit@{commit}")
    assert server.requests == []


def test_another_commit_is_another_set_of_start_weights(server):
    """Processes of one run compare these lines: they refuse to start from different commits of a repository."""
    first = server.serve("tiny/vit", GOLDEN / "vit")
    before = started_from("hf:tiny/vit").lines
    second = server.serve("tiny/vit", GOLDEN / "vit", README__md=b"the same weights")
    forget()
    after = started_from("hf:tiny/vit").lines
    assert [(old, new) for old, new in zip(before, after, strict=True) if old != new] == [
        (f"  revision: {first}", f"  revision: {second}")
    ]


def test_without_a_network_the_cached_commit_is_used(server):
    old = server.serve("tiny/vit", GOLDEN / "vit")
    inspect("hf:tiny/vit")
    server.serve("tiny/vit", GOLDEN / "timm")
    server.requests.clear()
    with environment(HF_HUB_OFFLINE="1"):
        assert inspect("hf:tiny/vit")[0] == f"revision: {old}"
    assert server.requests == []
    server.broken = True
    forget()
    assert inspect("hf:tiny/vit")[0] == f"revision: {old}"
    server.broken = False
    forget()
    assert inspect("hf:tiny/vit")[0] != f"revision: {old}"


def test_a_revision_a_folder_or_a_file_of_a_repository_may_be_named(server):
    tagged = server.serve("tiny/many", GOLDEN / "vit", ref="v1/a")
    server.serve("tiny/many", GOLDEN)
    assert inspect("hf:tiny/many@v1/a")[0] == f"revision: {tagged}"
    assert "named as" in inspect("hf:tiny/many/bert")[-2]
    server.requests.clear()
    assert inspect("hf:tiny/many/vit.outputs.safetensors")[-3].endswith("in vit.outputs.safetensors")
    assert "vit.outputs.safetensors" in server.fetched()


def test_the_only_weights_of_a_repository_may_have_any_name(server, tmp_path):
    data = (GOLDEN / "timm" / "model.safetensors").read_bytes()
    (tmp_path / "empty").mkdir()
    server.serve("tiny/odd", tmp_path / "empty", open_clip_model__safetensors=data, **OTHERS)
    assert inspect("hf:tiny/odd")[-3].endswith(" in open_clip_model.safetensors")
    assert server.fetched() == ["open_clip_model.safetensors"]
    with environment(HF_HUB_OFFLINE="1"):
        assert inspect("hf:tiny/odd")[-3].endswith(" in open_clip_model.safetensors")


@pytest.mark.parametrize("field", ["init_from", "text"])
def test_a_tokenizer_is_fetched_without_the_weights_beside_it(field, server):
    tokenizer = train_tokenizer(["a red circle"], kind="bert", vocab_size=48)
    server.serve("tiny/bert", GOLDEN / "bert", tokenizer__json=tokenizer.to_json().encode())
    config = recipe("demo")
    config.text_encoder.kind = "bert"
    config[field].update({"text": "hf:tiny/bert"} if field == "init_from" else {"tokenizer": "hf:tiny/bert"})
    assert open_tokenizer(config, workdir=None, texts=list).to_json() == tokenizer.to_json()
    assert server.fetched() == ["config.json", "tokenizer.json"]


WRONG = [
    ("hf:tiny/vit@", "is no name on the Hugging Face Hub; it is written hf:owner/name[/folder][@revision]"),
    ("hf:tiny/../vit", "is no name on the Hugging Face Hub"),
    ("hf:tiny/absent", "has no repository tiny/absent, or shows it only to those who may read it; check the name, or"),
    ("hf:tiny/gated", "is gated: accept its terms at http"),
    ("hf:tiny/vit@v2", "tiny/vit has no revision v2"),
    ("hf:tiny/vit/text_encoder", "there is no folder text_encoder in the repository"),
    ("hf:tiny/vit/other.safetensors", "there is no such file in the repository"),
    ("hf:tiny/vit/pytorch_model.bin", "is a pickle, which is not fetched from the Hub"),
    ("hf:tiny/pickle", "has no .safetensors, only pytorch_model.bin; a pickle is not fetched from the Hub"),
    ("hf:tiny/two", "holds 2 weight files (a.safetensors, b.safetensors); name one of them behind a /"),
    ("hf:tiny/nested", "has no .safetensors; its folders onnx have some"),
]


@pytest.mark.parametrize("source, message", WRONG, ids=[source for source, _ in WRONG])
def test_what_cannot_be_fetched_is_one_line(source, message, server, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    server.serve("tiny/vit", GOLDEN / "vit", **OTHERS)
    server.serve("tiny/gated", GOLDEN / "vit")
    server.repositories["tiny/gated"].gated = True
    server.serve("tiny/pickle", tmp_path / "empty", pytorch_model__bin=b"", config__json=b"{}")
    server.serve("tiny/two", tmp_path / "empty", a__safetensors=b"", b__safetensors=b"")
    server.serve("tiny/nested", tmp_path / "empty", **{"onnx/model__safetensors": b""})
    assert weights.run(["inspect", f"--source={source}"]) == 2
    line = capsys.readouterr().err.removesuffix("\n")
    assert line.startswith(f"mvlm weights inspect: {source}") and message in line and "\n" not in line
    assert not any(path.endswith(".bin") for path in server.fetched())


@pytest.mark.parametrize(
    ("source", "end"),
    [
        (
            "facebook/dinov2-small",
            "holds one; a repository on the Hugging Face Hub is written hf:facebook/dinov2-small",
        ),
        ("weights/vit.safetensors", "holds one"),
        ("/nowhere/vit", "holds one"),
        ("../nowhere", "holds one"),
    ],
)
def test_a_missing_path_that_may_be_a_name_is_shown_as_one(source, end):
    with pytest.raises(UserError) as error:
        inspect(source)
    assert str(error.value) == f"there is no {source}; give a .safetensors file or a folder that {end}"


def test_a_login_opens_what_is_gated(server):
    server.serve("tiny/gated", GOLDEN / "vit")
    server.repositories["tiny/gated"].gated = True
    with environment(HF_TOKEN=TOKEN):
        assert "named as" in inspect("hf:tiny/gated")[-2]


@pytest.mark.parametrize(
    "broken, variables, message",
    [
        (False, {"HF_HUB_OFFLINE": "1"}, "and HF_HUB_OFFLINE is set; unset it once, so that it can be fetched"),
        (True, {}, "cannot be reached (it answered 503); try again later"),
        (False, {"HF_ENDPOINT": "http://127.0.0.1:9"}, "http://127.0.0.1:9 cannot be reached (ConnectError: "),
    ],
    ids=["offline", "broken", "no server"],
)
def test_what_is_not_cached_and_cannot_be_fetched_is_one_line(broken, variables, message, server, tmp_path):
    server.broken = broken
    with environment(**variables), pytest.raises(UserError) as error:
        inspect("hf:tiny/vit")
    assert str(error.value).startswith(f"hf:tiny/vit is not whole in the cache {tmp_path}/home/hub, and ")
    assert message in str(error.value) and "\n" not in str(error.value)


def test_without_the_library_the_extra_is_named(monkeypatch):
    forget()
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(
        UserError, match=r"hf:tiny/vit needs huggingface_hub, the extra \[hub\]; pip install huggingface_hub"
    ):
        inspect("hf:tiny/vit")


@pytest.mark.parametrize("flag", ["workdir", "output"])
def test_a_name_is_no_path(flag, capsys):
    flags = {"workdir": "runs/a", "output": "out", flag: "hf:me/model"}
    assert weights.run(["export", *(f"--{name}={value}" for name, value in flags.items())]) == 2
    assert "hf:me/model is a name on the Hugging Face Hub, from which only weights" in capsys.readouterr().err
    assert user_path("./hf:me/model").parts == ("hf:me", "model")


def test_two_processes_that_start_together_fetch_each_file_once(server):
    server.serve("tiny/vit", GOLDEN / "vit")
    code = "from mvlm_jax.interop import hub; print(hub.local_path('hf:tiny/vit'))"
    start = {"args": [sys.executable, "-c", code], "cwd": ROOT, "env": dict(os.environ), "text": True}
    processes = [subprocess.Popen(**start, stdout=subprocess.PIPE) for _ in range(2)]
    folders = {process.communicate(timeout=60)[0].strip() for process in processes}
    assert [process.returncode for process in processes] == [0, 0]
    assert folders == {str(hub.local_path("hf:tiny/vit"))}
    assert server.fetched() == ["config.json", "model.safetensors"]
