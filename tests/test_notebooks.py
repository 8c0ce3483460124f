"""The notebooks run from top to bottom, on the CPU and at small size, and begin with the same cell."""

import json
import os
import re
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from tiny import ROOT, SMALLER

COLAB = ROOT / "launch" / "colab"
NOTEBOOKS = {file.stem: file for file in sorted(COLAB.glob("*.ipynb"))}
FIRST = COLAB / "first_cell.py"
# In the kernel, before everything else: whatever leaves this machine is an error.
NO_NETWORK = """
import sys

def only_here(event, arguments):
    if event == "socket.connect" and isinstance(arguments[1], tuple) and arguments[1][0] not in ("127.0.0.1", "::1"):
        raise PermissionError(f"a connection to {arguments[1]}")
    if event == "socket.getaddrinfo" and arguments[0] not in (None, "", "localhost", "127.0.0.1", "::1"):
        raise PermissionError(f"a look-up of {arguments[0]}")

sys.addaudithook(only_here)
"""


def cells(name, kind="code"):
    """(the source, the tags) of each cell."""
    notebook = json.loads(NOTEBOOKS[name].read_text())
    return [
        ("".join(cell["source"]), cell["metadata"].get("tags", []))
        for cell in notebook["cells"]
        if cell["cell_type"] == kind
    ]


def test_there_are_four_notebooks():
    assert set(NOTEBOOKS) == {"pretrain", "reconstruct", "search", "finetune_vqa"}


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_holds_no_output_and_begins_with_the_shared_cell(name):
    text = NOTEBOOKS[name].read_text()
    notebook = json.loads(text)
    # As share_first_cell.py writes it, so that it changes nothing but the cell.
    assert text == json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    assert notebook["metadata"]["kernelspec"]["name"] == "python3" and notebook["metadata"]["colab"]
    ids = [cell["id"] for cell in notebook["cells"]]
    assert len(set(ids)) == len(ids)
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None, cell["id"]
    [(first, _), (_, tags), *others] = cells(name)
    assert first == FIRST.read_text().rstrip("\n"), "run python launch/colab/share_first_cell.py"
    assert tags == ["parameters"] and not any(tags for _, tags in others)
    words = " ".join(text for text, _ in cells(name, "markdown"))
    linked = re.findall(r"\]\((\w+\.ipynb)\)", words)
    assert all((COLAB / file).is_file() for file in linked)


@pytest.mark.parametrize(
    "driver, installed",
    [
        ("580.65.06\n580.65.06\n", ["mvlm-jax[gpu] @ git+URL"]),
        ("550.54.15\n", ["mvlm-jax @ git+URL", "jax[cuda12]>=0.10,<0.13"]),
        ("NVIDIA-SMI has failed because it could not communicate with the driver.\n", ["mvlm-jax @ git+URL"]),
        (None, ["mvlm-jax @ git+URL"]),
    ],
)
def test_what_is_installed_fits_the_accelerator(driver, installed, first_cell, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    if driver:
        (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\nprintf '%s' '{driver}'\n")
        (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setattr(first_cell["glob"], "glob", lambda pattern: [])
    assert first_cell["packages"]("git+URL") == installed
    monkeypatch.setattr(first_cell["glob"], "glob", lambda pattern: ["/dev/vfio/0"] if "vfio" in pattern else [])
    assert first_cell["packages"]("git+URL") == ["mvlm-jax[tpu] @ git+URL"]


def test_the_package_comes_from_the_checkout_or_from_the_address(first_cell, tmp_path, monkeypatch):
    run = []
    monkeypatch.setattr(first_cell["subprocess"], "run", lambda command, **_: run.append(command))
    monkeypatch.setattr(first_cell["shutil"], "which", lambda name: None)
    monkeypatch.setattr(first_cell["glob"], "glob", lambda pattern: [])
    monkeypatch.setitem(sys.modules, "mvlm_jax.inference", None)  # importing it fails
    source = FIRST.read_text()
    assert source.count('REPOSITORY = ""') == 1

    def installed(source):
        with pytest.raises((ImportError, SystemExit)) as error:
            exec(compile(source, FIRST.name, "exec"), {})
        return str(error.value), [command[-2] for command in run]

    monkeypatch.chdir(tmp_path)
    message, nothing = installed(source)
    assert message.startswith("REPOSITORY is empty; give the git address") and "\n" not in message and not nothing
    _, [wanted] = installed(source.replace('REPOSITORY = ""', 'REPOSITORY = "https://example.org/mvlm.git"'))
    assert wanted == "mvlm-jax @ git+https://example.org/mvlm.git"
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "mvlm_jax").mkdir()
    for name in ("setup.py", "mvlm_jax/__init__.py"):
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path / "notebooks")
    _, [_, wanted] = installed(source)
    assert wanted == f"mvlm-jax @ {tmp_path.as_uri()}" and Path.cwd() == tmp_path


@pytest.fixture
def first_cell(monkeypatch):
    """The names that the first cell defines."""
    monkeypatch.setitem(sys.modules, "IPython", ModuleType("IPython"))
    display = SimpleNamespace(HTML=str, display=print)
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    monkeypatch.chdir(ROOT / "launch")
    names = {}
    exec(compile(FIRST.read_text(), str(FIRST), "exec"), names)
    assert Path.cwd() == ROOT
    return names


def executed(name, parameters, directory):
    """The notebook after all its cells, with these values in the place of its parameters."""
    import nbclient
    import nbformat

    notebook = nbformat.read(NOTEBOOKS[name], as_version=4)
    nbformat.validate(notebook)
    [place] = [at for at, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", [])]
    given = "\n".join(f"{key} = {value!r}" for key, value in parameters.items())
    assert all(re.search(rf"^(\w+, )?{key}\b", notebook.cells[place].source, re.MULTILINE) for key in parameters)
    notebook.cells.insert(place + 1, nbformat.v4.new_code_cell(given))
    notebook.cells.insert(0, nbformat.v4.new_code_cell(NO_NETWORK))
    where = {"metadata": {"path": str(directory)}}
    return nbclient.NotebookClient(notebook, timeout=400, kernel_name="python3", resources=where).execute()


def shown(notebook, kind):
    """What the cells have shown of a MIME type."""
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    return [output.data[kind] for output in outputs if kind in output.get("data", {})]


def printed(notebook):
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    return "".join(output.text for output in outputs if output.output_type == "stream")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """The directory that the notebooks share, and what their kernels find in the environment."""
    directory = tmp_path_factory.mktemp("notebooks")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")])))
        for variable in ("JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "IPYTHONDIR"):
            patch.setenv(variable, str(directory / "jupyter"))
        yield directory


SHARED = {"MODEL": "model", "TRAINED": "run", "DATA": "data", "STEPS": 6, "FIELDS": SMALLER}


@pytest.fixture(scope="module")
def pretrained(place):
    """The first notebook, whose model the others use."""
    own = {"RUN" if name == "TRAINED" else name: value for name, value in SHARED.items()}
    return executed("pretrain", own | {"SHOWN": 2}, place)


@pytest.mark.slow
def test_pre_training_shows_curves_reconstructions_and_the_report(pretrained, place):
    steps = [json.loads(line)["step"] for line in (place / "run" / "metrics.jsonl").read_text().splitlines()]
    assert max(steps) == 6
    assert len(shown(pretrained, "image/png")) == 3  # scenes, curves, what is rebuilt
    [table] = shown(pretrained, "text/markdown")
    assert "| R@1, the text of an image, re-ranked | " in table and "nan" not in table
    [page] = [html for html in shown(pretrained, "text/html") if "<iframe" in html]
    assert "&lt;!DOCTYPE html&gt;" in page
    assert (place / "model" / "model.safetensors").is_file()


@pytest.mark.slow
def test_a_region_and_words_are_rebuilt_beside_each_partner(pretrained, place):
    # Without the export it is made from the run, which is finished.
    notebook = executed("reconstruct", SHARED | {"MODEL": "exported"}, place)
    assert (place / "exported" / "model.safetensors").is_file()
    assert len(shown(notebook, "image/png")) == 5  # the pair, a region, the quarters twice, an edited caption
    for partner in ("its caption", "a wrong caption", "no caption"):
        assert re.search(rf"mean error of the hidden pixels beside {partner}: \d", printed(notebook))
    [table] = shown(notebook, "text/markdown")
    assert len(table.splitlines()) == 2 + 2 and table.count("%") == 2 * 3 * 3  # words, partners, guesses


@pytest.mark.slow
def test_a_folder_is_searched_by_text_and_by_image(pretrained, place):
    notebook = executed("search", SHARED | {"SCENES": 24, "TOP": 3}, place)
    by_text, by_image = [html for html in shown(notebook, "text/html") if "<iframe" in html]
    assert by_text.count("data:image/png") == 2 * 3 and by_image.count("data:image/png") == 3
    assert len(shown(notebook, "image/png")) == 2 * 2  # queries, before and after re-ranking
    assert "24 images in runs/scenes" in printed(notebook)


@pytest.mark.slow
def test_questions_are_answered_with_an_accuracy_for_each_type(pretrained, place):
    smaller = {"VQA_STEPS": 4, "VQA_FIELDS": SMALLER, "RUN": "vqa", "ANSWERING": "vqa-model"}
    notebook = executed("finetune_vqa", SHARED | smaller, place)
    measured = json.loads((place / "vqa" / "eval" / "vqa-shapes_vqa-test.json").read_text())
    assert {"accuracy", "accuracy_yes/no", "accuracy_number", "accuracy_other"} <= set(measured)
    assert len(shown(notebook, "image/png")) == 1 + 1 + 2 + 1  # questions, accuracy, answers, the scene to ask about
    assert re.search(r"^how many shapes are there\? +\S+$", printed(notebook), re.MULTILINE)
