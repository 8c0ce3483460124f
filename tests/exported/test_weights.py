"""Runs that start from published weights, and the three actions of `mvlm weights`, as a user meets them."""

import json
import re

import numpy as np
import pytest
from safetensors.numpy import load_file
from tiny import demo_flags

import mvlm_jax
from mvlm_jax.cli import train, weights
from mvlm_jax.interop.parameters import flat, restore_parameters
from mvlm_jax.tasks.pretrain import Pretrain

PARTS = ("mim", "mlm", "itc", "itm")
FROZEN = {f"optimizer__{part}_encoder_{end}": 0.0 for part in ("image", "text") for end in ("peak", "final")}


def losses(workdir):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "loss" in line]


def start_flags(published, *, data_dir, workdir, **changes):
    start = {f"init_from__{name}": published / f"{name}_encoder" for name in ("image", "text")}
    return demo_flags(data_dir=data_dir, workdir=workdir, steps=3, **{**start, **FROZEN, **changes})


def parameters(workdir, step=None):
    return restore_parameters(workdir / "checkpoints", step=step)[0]


def train_only(flags):
    """`mvlm train` without its evaluation, which costs more to compile than all else and is not looked at here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Pretrain, "evaluate", lambda self, params: {})
        return train.run(flags)


@pytest.fixture(scope="module")
def started(published, demo_dir, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("started") / "run"
    assert train_only(start_flags(published, data_dir=demo_dir, workdir=workdir, checkpoint__every=1)) == 0
    return workdir


# init_from


def test_first_losses_differ_from_those_of_a_random_start(demo_run, started):
    random, imported = losses(demo_run)[0], losses(started)[0]
    assert random["step"] == imported["step"] == 1
    # From the same start all would be alike but for rounding.
    for part in PARTS:
        assert abs(imported[part] - random[part]) > 1e-5 * random[part], part


def test_encoders_that_do_not_learn_are_still_the_published_ones_after_training(started, published, tmp_path):
    folder = tmp_path / "export"
    assert weights.run(["export", f"--workdir={started}", f"--output={folder}"]) == 0
    for name in ("image_encoder", "text_encoder"):
        expected, written = (load_file(place / name / "model.safetensors") for place in (published, folder))
        assert set(written) == set(expected)
        for key, value in expected.items():
            np.testing.assert_array_equal(written[key], value, err_msg=key)
    before, after = parameters(started, step=1), parameters(started, step=2)
    learnt = {path for path in before if not np.array_equal(before[path], after[path])}
    assert any(path.startswith("image_cross_encoder/") for path in learnt)
    # The one parameter that no published encoder brings learns like everything else that is new.
    assert {path for path in learnt if path.startswith(("image_encoder/", "text_encoder/"))} == {
        "image_encoder/mask_token"
    }
    assert f"image_encoder: {published}/image_encoder (ViT of transformers)" in (folder / "README.md").read_text()


def test_the_report_is_kept_in_the_workdir(started, published):
    kept = json.loads((started / "weights.json").read_text())
    by_encoder = {report["encoder"]: report for report in kept["loaded"]}
    assert set(by_encoder) == {"image_encoder", "text_encoder"}
    for name, report in by_encoder.items():
        held = load_file(published / name / "model.safetensors")
        assert report["source"] == str(published / name)
        assert report["tensors"] == len(held) and report["parameters"] == sum(value.size for value in held.values())
        assert report["resized"] == [] and report["not_used"] == {}
    assert by_encoder["image_encoder"]["initial"] == ["image_encoder/mask_token"]
    assert {"image_cross_encoder", "matching_head", "temperature"} <= set(kept["at_initial_values"])


def test_the_tokenizer_of_the_folder_comes_along(demo_run, started):
    tokenizers = [json.loads((place / "tokenizer.json").read_text())["model"]["vocab"] for place in (demo_run, started)]
    assert tokenizers[0] == tokenizers[1]


@pytest.mark.slow
def test_a_resumed_run_does_not_import_again(started, published, demo_dir, tmp_path, monkeypatch, caplog):
    sources = tmp_path / "sources"
    sources.mkdir()
    for name in ("image_encoder", "text_encoder"):
        (sources / name).mkdir()
        for file in (published / name).iterdir():
            (sources / name / file.name).write_bytes(file.read_bytes())
    workdir = tmp_path / "run"
    flags = start_flags(sources, data_dir=demo_dir, workdir=workdir, checkpoint__every=1)
    whole = Pretrain.train_batches

    def cut_short(self, start_step):
        yield next(batches := iter(whole(self, start_step)))
        yield next(batches)
        raise KeyboardInterrupt

    monkeypatch.setattr(Pretrain, "train_batches", cut_short)
    assert train_only(flags) == 130
    monkeypatch.undo()
    assert "image_encoder: " in caplog.text and "at their initial values: " in caplog.text
    caplog.clear()
    kept = (workdir / "weights.json").stat().st_mtime_ns
    sources.rename(tmp_path / "gone")
    assert train_only(flags) == 0
    assert [line["step"] for line in losses(workdir)][-1] == 3
    assert "image_encoder: " not in caplog.text
    assert (workdir / "weights.json").stat().st_mtime_ns == kept
    assert losses(workdir)[0]["loss"] == losses(started)[0]["loss"]


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"image_encoder__width": 32}, "image_encoder is 16 wide; config.image_encoder.width=32"),
        ({"image_encoder__layers": 2}, "image_encoder has 1 layers; config.image_encoder.layers=2"),
        ({"image_encoder__heads": 4}, "image_encoder has 2 heads; config.image_encoder.heads=4"),
        ({"text_encoder__vocab_size": 500}, "has a vocabulary of 400 tokens; config.text_encoder.vocab_size=500"),
        (
            {"text_encoder__vocab_size": 300},
            "but config.text_encoder.vocab_size=300; the embedding table needs a row for each",
        ),
        ({"text_encoder__kind": "bert"}, "give --config.text_encoder.kind=roberta"),
        ({"init_from__image": "nowhere"}, "there is no nowhere; give a .safetensors file or a folder"),
        ({"init_from__text": "IMAGE"}, "an image encoder is given as --config.init_from.image"),
        (
            {"init_from__text": "IMAGE", "text__tokenizer": "TOKENIZER"},
            "is a 'vit' by its config.json; text_encoder.kind=",
        ),
        ({"text__tokenizer": "OTHER"}, "embedding table of"),
        ({"text__tokenizer": "SMALL"}, "give the tokenizer that the weights were trained with"),
    ],
)
def test_weights_that_do_not_fit_leave_no_workdir_behind(changes, said, published, demo_dir, tmp_path, capsys):
    places = {
        "IMAGE": published / "image_encoder",
        "TOKENIZER": published / "text_encoder" / "tokenizer.json",
        "OTHER": permuted(published / "text_encoder" / "tokenizer.json", tmp_path / "other.json"),
        "SMALL": smaller(published / "text_encoder" / "tokenizer.json", tmp_path / "small.json"),
    }
    changes = {name: places.get(value, value) for name, value in changes.items()}
    assert train.run(start_flags(published, data_dir=demo_dir, workdir=tmp_path / "run", **changes)) == 2
    [error] = [line for line in capsys.readouterr().err.strip().splitlines() if line.startswith("mvlm train: ")]
    assert said in error
    assert not (tmp_path / "run").exists()


def permuted(file, target):
    """The same tokens, two of which have each other's ids."""
    values = json.loads(file.read_text())
    vocabulary = values["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    target.write_text(json.dumps(values))
    return target


def smaller(file, target):
    """Without the merged tokens."""
    values = json.loads(file.read_text())
    values["model"]["vocab"] = {token: n for token, n in values["model"]["vocab"].items() if n < 261}
    values["model"]["merges"] = []
    target.write_text(json.dumps(values))
    return target


# mvlm weights export


def test_an_export_holds_everything(export):
    files = {str(path.relative_to(export)) for path in export.rglob("*") if path.is_file()}
    assert files == {
        "README.md", "config.json", "model.safetensors", "tokenizer.json",
        "image_encoder/config.json", "image_encoder/model.safetensors", "image_encoder/preprocessor_config.json",
        "text_encoder/config.json", "text_encoder/model.safetensors", "text_encoder/tokenizer.json",
        "text_encoder/tokenizer_config.json",
    }  # fmt: skip


def test_parameters_come_back_bit_for_bit(demo_run, export):
    expected, loaded = parameters(demo_run), flat(mvlm_jax.load(export).params)
    assert set(loaded) == set(expected)
    for path, value in expected.items():
        assert loaded[path].dtype == value.dtype
        np.testing.assert_array_equal(loaded[path], value, err_msg=path)


def test_the_model_card_is_filled_from_the_run(demo_run, export):
    card = (export / "README.md").read_text()
    recall = json.loads((demo_run / "eval" / "retrieval-shapes-val.json").read_text())["tr_r1"]
    assert f"| retrieval-shapes-val | tr_r1 | {recall:.4g} |" in card
    assert re.search(r"\| reconstruction-shapes-val \| mlm_gain \| \S+ \[\S+, \S+\] \|", card)
    assert "| steps | 6 of 6, 8 pairs each |" in card and "| started from | random weights |" in card
    assert "| data | tfds:shapes:train |" in card
    assert json.loads(card.partition("```json")[2].partition("```")[0]) == json.loads(
        (export / "config.json").read_text()
    )


@pytest.mark.parametrize(
    "flags, said",
    [
        (["--workdir=RUN", "--output=EXPORT"], "exists already; give a folder that does not"),
        (["--workdir=RUN", "--output=NEW", "--step=7"], "no checkpoint of step 7"),
        (["--workdir=NEW", "--output=NEW"], "is not the workdir of a run"),
        (["--workdir=RUN"], "--output"),
        (["--workdir=RUN", "--output=RUN/config.json/new"], "cannot be written"),
    ],
)
def test_an_export_that_cannot_be_made_leaves_nothing(flags, said, demo_run, export, tmp_path, capsys):
    places = {"RUN": str(demo_run), "EXPORT": str(export), "NEW": str(tmp_path / "new")}
    before = sorted(export.parent.rglob("*"))
    flags = [re.sub("RUN|EXPORT|NEW", lambda found: places[found[0]], flag) for flag in flags]
    assert weights.run(["export", *flags]) == 2
    [error] = capsys.readouterr().err.strip().splitlines()[-1:]
    assert error.startswith("mvlm weights export: ") and said in error
    assert sorted(export.parent.rglob("*")) == before and not list(tmp_path.iterdir())


# mvlm weights import


def import_flags(published, *, data_dir, **changes):
    flags = start_flags(published, data_dir=data_dir, workdir="unused", **changes)
    return ["import", *(flag for flag in flags if not flag.startswith("--workdir"))]


def test_import_prints_the_report_and_writes_the_same_encoders(published, demo_dir, tmp_path, capsys):
    output = tmp_path / "imported"
    assert weights.run([*import_flags(published, data_dir=demo_dir), f"--output={output}"]) == 0
    printed = capsys.readouterr().out
    assert re.search(
        r"^image_encoder: 22 tensors, .* parameters from .*image_encoder \(ViT of transformers\)$", printed, re.M
    )
    assert "at its initial value: image_encoder/mask_token" in printed
    assert "at their initial values: image_cross_encoder" in printed
    for name in ("image_encoder", "text_encoder"):
        expected, written = (load_file(place / name / "model.safetensors") for place in (published, output))
        assert set(written) == set(expected)
        for key, value in expected.items():
            np.testing.assert_array_equal(written[key], value, err_msg=key)
        assert (output / name / "config.json").read_text() == (published / name / "config.json").read_text()
    assert json.loads((output / "weights.json").read_text())["loaded"][0]["encoder"] == "image_encoder"


def test_import_says_what_was_resized(published, demo_dir, capsys):
    flags = import_flags(published, data_dir=demo_dir, image__size=64, text_encoder__positions=40)
    assert weights.run(flags) == 0
    printed = capsys.readouterr().out
    assert "resized: position_embedding: bicubic from 4x4 to 8x8 patches" in printed
    assert "resized: position_embedding: cut from 64 to 40 positions" in printed


def test_import_of_what_does_not_fit_writes_nothing(published, demo_dir, tmp_path, capsys):
    flags = import_flags(published, data_dir=demo_dir, image_encoder__width=32)
    assert weights.run([*flags, f"--output={tmp_path / 'new'}"]) == 2
    assert "is 16 wide; config.image_encoder.width=32" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_import_of_nothing_is_refused(demo_dir, capsys):
    flags = demo_flags(data_dir=demo_dir, workdir="unused", steps=3)
    assert weights.run(["import", *(flag for flag in flags if not flag.startswith("--workdir"))]) == 2
    assert "nothing to import; give --config.init_from.image=PATH" in capsys.readouterr().err


# mvlm weights inspect


def test_inspect_prints_the_tensors_and_what_they_are(export, capsys):
    assert weights.run(["inspect", f"--source={export / 'text_encoder'}"]) == 0
    printed = capsys.readouterr().out
    assert "embeddings.word_embeddings.weight  [400, 16]  float32" in printed
    assert printed.endswith("named as BERT or RoBERTa of transformers; 1 layers\ntokenizer: tokenizer.json\n")


@pytest.mark.parametrize("argv, said", [([], "import,export,inspect"), (["imprt"], "'imprt' is not one of")])
def test_an_unknown_action_is_refused(argv, said, capsys):
    assert weights.run(argv) == 2
    assert said in capsys.readouterr().err
