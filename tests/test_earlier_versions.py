"""What earlier versions wrote is read, with the same outputs. tests/fixtures/d509bc9/README.md says how it was made."""

import io
import json
import shutil
import tarfile

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file
from tiny import ROOT, recipe

import mvlm_jax
from mvlm_jax import config as config_lib
from mvlm_jax.cli import evaluate, train, weights
from mvlm_jax.config_migration import VERSION
from mvlm_jax.data.sources import open_labelled, open_source
from mvlm_jax.errors import UserError
from mvlm_jax.interop.checkpoint import import_checkpoint
from mvlm_jax.interop.parameters import flat
from mvlm_jax.tasks.registry import task_type
from mvlm_jax.training.workdir import check_workdir, read_config

CONFIGS = {path.stem: path for path in (ROOT / "tests" / "fixtures" / "configs").glob("version_*.json")}
OLD = ROOT / "tests" / "fixtures" / "d509bc9"
EXPECTED = json.loads((OLD / "expected.json").read_text())
TODAY = {  # the recipe of the old run in today's fields, besides `--config=demo`
    "steps": 4,
    "batch_size": 8,
    "matching.group": 4,
    "image.size": 16,
    "image_encoder.patch": 4,
    "text.max_length": 28,
    "text_encoder.vocab_size": 270,
    "text_encoder.positions": 34,
    "model.projection": 4,
    "optimizer.warmup_steps": 2,
    "loss.pixels": "l1",
    "loss.mim": 1.0,
    "mask.image_cell": 2,
    "mask.image_ratio": 0.6,
    "data.augment.min_scale": 0.9,
    "checkpoint.every": 2,
    "eval.batch_size": 16,
    "eval.rerank": 3,
    "eval.bootstrap": 50,
    "log_every": 1,
    **{
        f"{part}.{name}": value
        for part in ("image_encoder", "text_encoder", "cross")
        for name, value in {"width": 4, "heads": 2, "layers": 1, "mlp_ratio": 1}.items()
    },
}


@pytest.fixture
def old_run(tmp_path):
    with tarfile.open(OLD / "run.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path / "run"


@pytest.fixture(scope="module")
def old_data(tmp_path_factory):
    """The scenes of then."""
    directory = tmp_path_factory.mktemp("old")
    with tarfile.open(OLD / "data.tar.xz") as archive:
        archive.extractall(directory, filter="data")
    return directory / "data"


@pytest.mark.parametrize("stem", CONFIGS)
def test_the_default_config_of_every_version_is_read(stem):
    config = config_lib.from_json(CONFIGS[stem].read_text(), source=CONFIGS[stem].name)
    # Of the first version there was no choice of these; the first three re-ranked as the paper does.
    config.model.attention = config.model.layer_loop = "auto"
    config.eval.rerank_by = "itm+itc"
    config.data.workers = -1  # there was no automatic number
    config.model.remat = "auto"  # it was none everywhere
    assert config_lib.differences(config, config_lib.default(), changeable=()) == ""


def test_a_change_of_the_fields_comes_with_a_version():
    stored = config_lib.flatten(json.loads(CONFIGS[f"version_{VERSION}"].read_text()))
    changed = {name for name, _ in stored} ^ {name for name, _ in config_lib.flatten(config_lib.default())}
    assert not changed, (
        f"{sorted(changed)}: raise VERSION in mvlm_jax/config_migration.py, add a step that gives the fields their "
        f"value in earlier runs, and store to_json(default()) as tests/fixtures/configs/version_{VERSION + 1}.json"
    )


def test_fields_of_the_first_version_move():
    values = json.loads(CONFIGS["version_1"].read_text())
    values["model"] |= {"width": 96, "heads": 3, "layers": 7, "cross_layers": 5, "decoder_layers": 4}
    values |= {"blind": "text", "task": "vqa"}
    values["data"] |= {"train": "2*vqa:a b/c:train + tfds:x:val[:9]", "eval": "snli_ve:../SNLI-VE:dev"}
    config = config_lib.from_json(json.dumps(values))
    for part in (config.image_encoder, config.text_encoder, config.cross):
        assert (part.width, part.heads, part.mlp_ratio) == (96, 3, 4)
    assert (config.image_encoder.layers, config.text_encoder.layers) == (7, 7)
    assert (config.cross.layers, config.cross.decoder_layers) == (5, 4)
    assert (config.hide_modality, config.image_encoder.kind) == ("text", "vit")
    assert (config.model.attention, config.model.layer_loop) == ("xla", "scan")
    assert config.data.train == "2*vqa:a b/c?split=train + tfds:x:val[:9]"
    assert config.data.eval == "snli_ve:../SNLI-VE?split=dev"


@pytest.mark.parametrize(
    "change, message",
    [
        ({"config_version": VERSION + 1}, f"config_version={VERSION + 1} is newer than {VERSION}"),
        ({"config_version": "2"}, "config_version='2' is not a whole number"),
        ({"config_version": 0}, "config_version=0 is not a whole number"),
        ({"model": {"width": 8}}, "unknown fields: model.width"),
        ({"seed": None, "steps": None}, "missing fields: seed, steps"),
        ({"seed": "many"}, "seed"),
        ({"data": 3}, "unknown fields: data"),
        ({"data": None}, "data.augment.operations, data.data_dir and 8 more"),
    ],
)
def test_what_does_not_fit_is_one_line(change, message):
    values = json.loads(CONFIGS[f"version_{VERSION}"].read_text()) | change
    with pytest.raises(UserError) as caught:
        config_lib.from_json(json.dumps(values), source="runs/a/config.json")
    assert str(caught.value).startswith("runs/a/config.json cannot be used: ") and message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"\xff\xfe\xff", b"", b"[1]", b"3", b"{"])
def test_a_damaged_config_is_one_line(content, tmp_path):
    (tmp_path / "config.json").write_bytes(content)
    for read in (read_config, mvlm_jax.load):
        with pytest.raises(UserError, match=r"config\.json cannot be used: .") as caught:
            read(tmp_path)
        assert "\n" not in str(caught.value)


def test_todays_recipe_fits_an_old_run(old_run):
    config = recipe("demo")
    config.update_from_flattened_dict(TODAY)
    assert check_workdir(old_run, config=config) == old_run
    config.cross.width = 8
    with pytest.raises(UserError, match="config.cross.width is 4 there and 8 here"):
        check_workdir(old_run, config=config)


@pytest.mark.slow  # compiles a training step
def test_an_old_run_goes_on_with_todays_recipe(old_run, old_data):
    before = (old_run / "config.json").read_bytes()
    fields = [f"--config.{name}={value}" for name, value in (TODAY | {"data.data_dir": old_data}).items()]
    assert train.run(["--config=demo", f"--workdir={old_run}", *fields]) == 0
    lines = [json.loads(line) for line in (old_run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4]
    resumed = [line for line in lines if "loss" in line and line["step"] > 2]
    for line, expected in zip(resumed, EXPECTED["resumed"], strict=True):
        # They were fractions then, and are percent now.
        expected |= {name: 100 * value for name, value in expected.items() if name.endswith("_accuracy")}
        # Both encoders had one rate then.
        rate = expected.pop("learning_rate/encoder")
        expected |= {f"learning_rate/{encoder}": rate for encoder in ("image_encoder", "text_encoder")}
        assert {name: line[name] for name in expected} == pytest.approx(expected, rel=1e-4)
    assert (old_run / "config.json").read_bytes() == before  # the version that wrote it can still go on


def test_an_old_run_is_evaluated(old_run, old_data):
    assert evaluate.run([f"--workdir={old_run}", f"--config.data.data_dir={old_data}"]) == 0
    for name, expected in EXPECTED["evaluation"].items():
        [file] = (old_run / "eval").glob(f"{name}-*.json")
        found = json.loads(file.read_text())
        for metric, value in expected.items():
            if metric == "left_out":
                assert found[metric] == value
            else:
                np.testing.assert_allclose(found[metric], value, rtol=1e-4, atol=1e-6, err_msg=metric)


@pytest.mark.parametrize("source", ["run", "export"])
def test_a_run_starts_from_an_old_one(source, old_run):
    path = {"run": old_run, "export": OLD / "export"}[source]
    config = read_config(old_run)
    imported = import_checkpoint(str(path), shapes=task_type(config).parameter_shapes(config), config=config)
    written = load_file(OLD / "export" / "model.safetensors")
    assert not imported.report["at_initial_values"]
    assert imported.params.keys() == written.keys()
    for name, value in imported.params.items():
        np.testing.assert_array_equal(value, written[name], err_msg=name)


def test_an_old_run_is_exported(old_run, tmp_path):
    assert weights.run(["export", f"--workdir={old_run}", f"--output={tmp_path / 'export'}"]) == 0
    found = load_file(tmp_path / "export" / "model.safetensors")
    written = load_file(OLD / "export" / "model.safetensors")
    assert found.keys() == written.keys()
    for name in found:
        np.testing.assert_array_equal(found[name], written[name], err_msg=name)
    assert json.loads((tmp_path / "export" / "config.json").read_text())["config_version"] == VERSION


def test_an_old_export_is_loaded(old_data):
    source = open_source("tfds:shapes:val", data_dir=str(old_data))
    examples = [source[index] for index in range(3)]
    expected = EXPECTED["load"]
    captions = [example["captions"][0] for example in examples]
    assert captions == expected["captions"]
    images = [Image.open(io.BytesIO(example["image"])) for example in examples]
    model = mvlm_jax.load(OLD / "export", batch_size=4)
    np.testing.assert_allclose(model.encode_image(images), expected["encode_image"], atol=1e-5)
    np.testing.assert_allclose(model.encode_text(captions), expected["encode_text"], atol=1e-5)
    np.testing.assert_allclose(model.match(images, captions), expected["match"], atol=1e-5)
    [found], [filled] = model.fill_mask("a <mask> circle", images[0], top=2), expected["fill_mask"]
    assert [token for token, _ in found] == [token for token, _ in filled]


def test_an_old_export_of_a_fine_tuned_model_answers_as_it_did(old_data, tmp_path):
    """Exports of then had no list of answers: it is put beside one, as its run has it."""
    expected = EXPECTED["vqa"]
    shutil.copytree(OLD / "vqa_export", tmp_path / "export")
    with pytest.raises(UserError, match="has no answers.json, the list of answers; export its run again"):
        mvlm_jax.load(tmp_path / "export")
    (tmp_path / "export" / "answers.json").write_text(json.dumps(expected["candidates"]))
    source = open_labelled("tfds:shapes_vqa:val", data_dir=str(old_data))
    examples = [source[index] for index in range(len(expected["answers"]))]
    images = [Image.open(io.BytesIO(example["images"][0])) for example in examples]
    model = mvlm_jax.load(tmp_path / "export", batch_size=4)
    answers = model.answer(images, [example["text"] for example in examples])
    assert dict(zip((example["example_id"] for example in examples), answers)) == expected["answers"]


def test_an_old_export_of_a_fine_tuned_model_has_every_parameter():
    config = config_lib.from_json((OLD / "vqa_export" / "config.json").read_text())
    assert (config.task, config.hide_modality) == ("vqa", "image")
    shapes = {name: leaf.shape for name, leaf in flat(task_type(config).parameter_shapes(config)).items()}
    assert shapes == {name: value.shape for name, value in load_file(OLD / "vqa_export" / "model.safetensors").items()}
