"""Each downstream task as a user meets it: from a pre-trained run to an evaluated one, at another image size."""

import inspect
import io
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from html_page import problems
from PIL import Image
from safetensors.numpy import save_file
from tiny import SMALLER, demo_flags, prepare_shapes, recipe, sizes

import mvlm_jax
from mvlm_jax import config as config_lib
from mvlm_jax.cli import evaluate, report, train, weights
from mvlm_jax.data import images
from mvlm_jax.data.builders import shapes_tasks
from mvlm_jax.data.images import UndecodableImage
from mvlm_jax.data.labelled import LabelledRow
from mvlm_jax.data.sources import open_labelled
from mvlm_jax.data.writing.dataset import write_dataset
from mvlm_jax.errors import UserError
from mvlm_jax.evaluation.vqa_accuracy import vqa_accuracy
from mvlm_jax.interop.checkpoint import import_checkpoint
from mvlm_jax.interop.exporting import CONFIG, WEIGHTS
from mvlm_jax.interop.image_family import resize_positions
from mvlm_jax.interop.parameters import flat
from mvlm_jax.tasks.entailment import Entailment
from mvlm_jax.tasks.labelled import LabelledTask
from mvlm_jax.tasks.nlvr2 import Nlvr2
from mvlm_jax.tasks.registry import describe_task, open_task, task_type
from mvlm_jax.training.task import Task
from mvlm_jax.training.workdir import ORIGIN, read_config

TASKS = {
    "vqa": "finetune_vqa.py:shapes",
    "nlvr2": "finetune_nlvr2.py:shapes",
    "entailment": "finetune_snli_ve.py:shapes",
}
SHAPES_OF = {"vqa": "shapes_vqa", "nlvr2": "shapes_nlvr2", "entailment": "shapes_ve"}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    directory = tmp_path_factory.mktemp("data")
    prepare_shapes(directory)
    for name in shapes_tasks.TASKS:
        write_dataset(shapes_tasks.collection(name, train=60, val=60, test=60), name=name, data_dir=directory)
    return directory


def flags(task, *, data_dir, workdir, start, **changes):
    changes = {"steps": 3, "image__size": 48, "init_from__checkpoint": start, "eval__batch_size": 64} | changes
    if task == "vqa":
        changes |= {"vqa__decoder_layers": 1}
    uri = f"tfds:{SHAPES_OF[task]}:val[:50]"
    return demo_flags(data_dir=data_dir, workdir=workdir, recipe=TASKS[task], data__eval=uri, **changes)


@pytest.fixture(
    scope="module", params=["vqa", *(pytest.param(name, marks=pytest.mark.slow) for name in ("nlvr2", "entailment"))]
)
def finetuned(request, data_dir, demo_run, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / request.param
    given = flags(request.param, data_dir=data_dir, workdir=workdir, start=demo_run)
    assert train.run(given) == 0
    return request.param, workdir, given


def test_a_task_is_trained_from_a_checkpoint_and_evaluated(finetuned, capsys):
    name, workdir, given = finetuned
    [file] = (workdir / "eval").glob(f"{name}-*-val*.json")
    before = json.loads(file.read_text())
    assert before["step"] == 3
    assert before["questions" if name == "vqa" else "examples"] == 50
    assert 0 <= before["accuracy"] <= 100
    assert before["left_out"] == {}
    # Another batch size, and the same answers.
    assert evaluate.run([*given, "--config.eval.batch_size=24"]) == 0
    after = json.loads(file.read_text())
    for of in ("left_out", "confusion", *ORIGIN):
        assert after.pop(of, None) == before.pop(of, None)
    assert after == pytest.approx(before, rel=1e-6)


@pytest.mark.slow
def test_a_page_shows_what_a_fine_tuned_model_answers(finetuned, tmp_path):
    name, workdir, _ = finetuned
    assert report.run([f"--workdir={workdir}", "--examples=2", f"--output={tmp_path}/page.html"]) == 0
    page = (tmp_path / "page.html").read_text()
    assert problems(page) == []
    cards = page.partition("Answered right")[2].partition('<h2 id="curves">')[0]
    images = {"nlvr2": 2}.get(name, 1)
    assert cards.count("<img") == images * cards.count('class="card"') > 0
    assert ("Which label was taken for which" in page) == (name != "vqa")


def test_everything_but_the_new_head_comes_from_the_checkpoint(finetuned, demo_run):
    name, workdir, _ = finetuned
    kept_report = json.loads((workdir / "weights.json").read_text())
    new = [] if name == "vqa" else ["classification_head"]
    assert kept_report["at_initial_values"] == new
    [loaded] = kept_report["loaded"]
    assert loaded["resized"] == ["image_encoder/position_embedding (1, 17, 16) -> (1, 37, 16)"]
    if name == "vqa":
        assert loaded["initial"] == ["answer_decoder/position_embedding"]
        assert loaded["notes"] == ["the blocks of answer_decoder start from those of text_cross_encoder: 0"]
    else:
        assert {path.partition("/")[0] for path in loaded["initial"]} == set(new)
    [unused] = loaded["not_used"].values()
    kept = {"token_classifier"} if name == "vqa" else set()
    assert {path.partition("/")[0] for path in unused} >= {"image_decoder", "matching_head", "token_classifier"} - kept
    assert kept.isdisjoint(path.partition("/")[0] for path in unused)


def broken_image(monkeypatch, *, data):
    """Images of these bytes cannot be decoded."""
    decode = images.decode_image

    def decode_others(image, **options):
        if image == data:
            raise UndecodableImage("corrupt", "made so")
        return decode(image, **options)

    monkeypatch.setattr(images, "decode_image", decode_others)


def test_what_an_evaluation_server_gets_names_every_example(finetuned, data_dir, tmp_path, monkeypatch):
    """One image is broken: whatever is asked of it is answered, and counted as wrong."""
    name, workdir, given = finetuned
    file = tmp_path / "submission"
    uri = f"tfds:{SHAPES_OF[name]}:test[:50]"
    source = open_labelled(uri, data_dir=str(data_dir))
    broken_image(monkeypatch, data=source[7]["images"][-1])
    passes, whole = [], LabelledTask.predictions
    monkeypatch.setattr(LabelledTask, "predictions", lambda *arguments: passes.append(1) or whole(*arguments))
    command = [*given, f"--config.data.eval={uri}"]
    refused = evaluate.run([*command, f"--submission={tmp_path / 'none' / 'submission'}"])
    assert refused == 2 and not passes
    if name == "entailment":
        assert evaluate.run([*command, f"--submission={file}"]) == 2 and not passes
        assert evaluate.run(command) == 0
    else:
        assert evaluate.run([*command, f"--submission={file}"]) == 0
    assert len(passes) == 1
    [found] = [json.loads(path.read_text()) for path in (workdir / "eval").glob(f"{name}-*-test*.json")]
    assert found["questions" if name == "vqa" else "examples"] == 50
    broken = {i for i in range(50) if source[7]["images"][-1] in source[i]["images"]}
    assert found["left_out"] == {"corrupt": len(broken)}
    if name == "entailment":
        assert found["accuracy"] <= 100 - 2 * len(broken)
        return
    rows = {source.row(index).example_id: source.row(index) for index in range(50)}
    if name == "vqa":
        answers = {entry["question_id"]: entry["answer"] for entry in json.loads(file.read_text())}
        right = {identity: vqa_accuracy(answers[identity], row.answers) for identity, row in rows.items()}
    else:
        lines = [line.split(",") for line in file.read_text().splitlines()]
        assert len(lines) == 50
        answers = dict(lines)
        assert set(answers.values()) <= {"True", "False"}
        right = {identity: float(answers[identity] == row.answers[0]) for identity, row in rows.items()}
    assert set(answers) == set(rows)
    unseen = {source.row(index).example_id for index in broken}
    counted = [0 if identity in unseen else value for identity, value in right.items()]
    assert found["accuracy"] == pytest.approx(100 * np.mean(counted))


def test_an_evaluation_of_which_nothing_can_be_used_is_refused(finetuned, tmp_path, monkeypatch, capsys):
    name, workdir, given = finetuned
    before = {path: path.read_text() for path in (workdir / "eval").iterdir()}

    def broken(image, **options):
        raise UndecodableImage("corrupt", "made so")

    monkeypatch.setattr(images, "decode_image", broken)
    submission = [] if name == "entailment" else [f"--submission={tmp_path / 'submission'}"]
    assert evaluate.run([*given, *submission]) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    uri = f"tfds:{SHAPES_OF[name]}:val[:50]"
    assert said == f"mvlm evaluate: none of the 50 examples of config.data.eval={uri} can be used (corrupt: 50)"
    assert not (tmp_path / "submission").exists()
    assert {path: path.read_text() for path in (workdir / "eval").iterdir()} == before


def test_statements_that_cannot_be_seen_break_the_consistency_of_their_sentence():
    task = describe_task(recipe("finetune_nlvr2", "shapes"))
    rows = [LabelledRow((), "", ("True",), "", group, f"{group}{number}") for group in "ab" for number in range(2)]
    [found] = task.results([(row, {"True": 0.9, "False": 0.1}) for row in rows[:3]], [(rows[3], "absent")]).values()
    counted = {"skipped_images": 1, "left_out": {"absent": 1}}
    confusion = {"confusion": {"True": {"True": 3, "False": 0}, "False": {"True": 0, "False": 0}}}
    assert found == {"accuracy": 75, "examples": 4, "consistency": 50, "groups": 2} | confusion | counted


@pytest.mark.parametrize(
    ("recipe", "given", "said"),
    [
        ("finetune_vqa.py:shapes", ["--k=8"], "--k=8 re-ranks in retrieval; config.task=vqa has none"),
        ("demo.py", ["--templates=prompts.txt"], "--templates=prompts.txt needs --classify=DIR"),
        ("demo.py", ["--class_names=names.txt"], "--class_names=names.txt needs --classify=DIR"),
        ("demo.py", ["--classify=DIR", "--submission=out.csv"], "give --submission=out.csv to a call of its own"),
        ("demo.py", ["--classify=DIR", "--k=8"], "give --k=8 to a call of its own"),
    ],
)
def test_flags_that_would_do_nothing_are_refused(recipe, given, said, tmp_path, capsys):
    common = demo_flags(data_dir=tmp_path, workdir=tmp_path / "run", recipe=recipe)
    assert evaluate.run([*common, *given]) == 2
    assert said in capsys.readouterr().err.strip().splitlines()[-1]


def test_an_export_predicts_what_its_run_does(finetuned, data_dir, tmp_path):
    name, workdir, _ = finetuned
    assert weights.run(["export", f"--workdir={workdir}", f"--output={tmp_path / 'exported'}"]) == 0
    model = mvlm_jax.load(tmp_path / "exported", batch_size=4)
    task = open_task(read_config(workdir), workdir=workdir)
    predicted, _ = task.predictions(model.params)
    source = open_labelled(f"tfds:{SHAPES_OF[name]}:val[:50]", data_dir=str(data_dir))
    examples = [source[index] for index in range(10)]
    images = [[Image.open(io.BytesIO(image)) for image in example["images"]] for example in examples]
    texts = [example["text"] for example in examples]
    expected = [prediction for _, prediction in predicted[:10]]
    if name == "vqa":
        assert model.predict(images, texts) == expected
        assert model.answer([image for [image] in images], texts) == [answer.ranked for answer in expected]
        with pytest.raises(UserError, match="classify_pair is not for a model of config.task=vqa"):
            model.classify_pair(images, texts)
        answers = tmp_path / "exported" / "answers.json"
        for content in ("3", "{}", "[]", "[1]"):
            answers.write_text(content)
            with pytest.raises(UserError, match="answers.json must be a list of at least one answer"):
                mvlm_jax.load(tmp_path / "exported")
        answers.write_text("[")
        with pytest.raises(UserError, match="answers.json cannot be read"):
            mvlm_jax.load(tmp_path / "exported")
        answers.unlink()
        with pytest.raises(UserError, match="has no answers.json, the list of answers; export its run again"):
            mvlm_jax.load(tmp_path / "exported")
    else:
        for probabilities, other in zip(model.classify_pair(images, texts), expected, strict=True):
            assert probabilities == pytest.approx(other, rel=1e-4)
            assert tuple(probabilities) == task.labels and sum(probabilities.values()) == pytest.approx(1)
        wrong = [image[:1] * (3 - task.images) for image in images]
        with pytest.raises(UserError, match=rf"takes {task.images} images a text; images\[0\] holds {3 - task.images}"):
            model.classify_pair(wrong, texts)
    with pytest.raises(UserError, match=f"encode_image is not for a model of config.task={name}; use"):
        model.encode_image(images[0])
    with pytest.raises(UserError, match="it needs one text for each image"):
        model.predict(images, texts[:-1])
    unchecked = inspect.unwrap(type(model).predict)  # users have no checks of types
    for wrong in (images[0][0], "dog.jpg", ["dog.jpg"]):
        with pytest.raises(UserError, match="images"):
            unchecked(model, wrong, texts[:1])


def test_tasks_are_tasks(finetuned):
    name, workdir, _ = finetuned
    task = open_task(read_config(workdir), workdir=workdir)
    assert isinstance(task, Task)
    assert task.flops_per_step > 0
    batch = next(iter(task.train_batches(0)))
    shapes = {key: (value.shape, value.dtype) for key, value in batch.items()}
    assert shapes == {key: (shape.shape, shape.dtype) for key, shape in task.batch_shapes.items()}
    described = describe_task(read_config(workdir))
    assert described.batch_shapes == task.batch_shapes


def test_a_hidden_modality_is_the_same_for_every_example(finetuned):
    _, workdir, _ = finetuned
    config = read_config(workdir)
    for modality, hidden in (("image", "image"), ("text", "text"), ("none", None)):
        config.hide_modality = modality
        task = open_task(config, workdir=workdir)
        batches = task.train_batches(0)
        shown = [task.shown(jax.tree.map(jnp.asarray, next(batches))) for _ in range(2)]
        for side in ("image", "text"):
            same = np.array_equal(shown[0][side], shown[1][side])
            assert same == (side == hidden)
    assert (np.asarray(shown[0]["text"][:, 0]) == task.tokenizer.ids.start).all()


def test_labels_have_their_published_numbers():
    assert [Entailment.labels.index(label) for label in ("contradiction", "neutral", "entailment")] == [0, 1, 2]
    assert Nlvr2.labels.index("True") == 1


@pytest.mark.slow
def test_retrieval_is_fine_tuned_and_swept_over_candidates(data_dir, demo_run, tmp_path, capsys):
    workdir = tmp_path / "retrieval"
    given = demo_flags(
        data_dir=data_dir, workdir=workdir, recipe="finetune_retrieval.py:shapes", steps=2, image__size=48,
        init_from__checkpoint=demo_run, optimizer__warmup_steps=1,
    )  # fmt: skip
    assert train.run(given) == 0
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert not any("mlm" in line or "mim" in line for line in lines)
    assert [file.name for file in (workdir / "eval").iterdir()] == ["retrieval-shapes-val.json"]
    capsys.readouterr()
    assert evaluate.run([*given, "--k=2,12,5", "--config.eval.rerank_by=itm+itc"]) == 0
    found = json.loads(capsys.readouterr().out)["retrieval-val"]
    assert (found["rerank_candidates"], found["rerank_by"]) == (12, "itm+itc")
    assert {"tr_r1_rerank", "tr_r1_rerank_2", "tr_r1_rerank_5", "r_mean", "r_mean_rerank"} <= set(found)
    mean = np.mean([found[f"{way}_r{k}"] for way in ("tr", "ir") for k in (1, 5, 10)])
    assert found["r_mean"] == pytest.approx(mean)
    assert evaluate.run([*given, "--k=2,x"]) == 2
    capsys.readouterr()
    assert evaluate.run([*given, "--config.eval.rerank_by=itc"]) == 2
    assert "config.eval.rerank_by='itc' is not one of itm, itm+itc" in capsys.readouterr().err


def test_an_exported_folder_serves_as_well_as_the_run(demo_run, tmp_path):
    folder = tmp_path / "export"
    assert weights.run(["export", f"--workdir={demo_run}", f"--output={folder}"]) == 0
    config = read_config(demo_run)
    config.task, config.image.size = "entailment", 48
    shapes = task_type(config).parameter_shapes(config)
    from_run, from_folder = (import_checkpoint(str(path), shapes=shapes, config=config) for path in (demo_run, folder))
    assert from_run.params.keys() == from_folder.params.keys()
    jax.tree.map(np.testing.assert_array_equal, from_run.params, from_folder.params)
    table = from_run.params["image_encoder/position_embedding"]
    config.image.size = 32
    small = import_checkpoint(str(folder), shapes=task_type(config).parameter_shapes(config), config=config).params
    np.testing.assert_allclose(table, resize_positions(small["image_encoder/position_embedding"], rows=37))
    assert set(flat(task_type(config).parameter_shapes(config))) - set(small) == {
        f"classification_head/{layer}/{kind}" for layer in ("dense", "out") for kind in ("kernel", "bias")
    }


def exported(folder, *, config):
    """A folder with the model that `config` describes, at random values; these values."""
    rng = np.random.default_rng(len(folder.name))
    shapes = flat(task_type(config).parameter_shapes(config)).items()
    values = {path: rng.standard_normal(leaf.shape, np.float32) for path, leaf in shapes}
    folder.mkdir()
    save_file(values, folder / WEIGHTS)
    (folder / CONFIG).write_text(config_lib.to_json(config))
    return values


def small(**changes):
    config = recipe("demo")
    config.update_from_flattened_dict(SMALLER | {name.replace("__", "."): value for name, value in changes.items()})
    return config


def imported(folder, *, config):
    return import_checkpoint(str(folder), shapes=task_type(config).parameter_shapes(config), config=config)


@pytest.mark.parametrize(
    ("of", "there", "layers", "blocks"),
    [
        ("text_cross_encoder", 3, 6, (0, 0, 1, 1, 2, 2)),
        ("text_cross_encoder", 3, 4, (0, 1, 2, 2)),
        ("text_cross_encoder", 3, 2, (1, 2)),
        ("answer_decoder", 2, 4, (0, 0, 1, 1)),
        ("answer_decoder", 2, 2, (0, 1)),
    ],
)
def test_an_answer_decoder_starts_from_the_text_cross_encoder_unless_there_is_one(of, there, layers, blocks, tmp_path):
    if of == "answer_decoder":
        values = exported(tmp_path / "before", config=small(task="vqa", vqa__decoder_layers=there))
        config = small(task="vqa", vqa__decoder_layers=layers)
    else:
        values = exported(tmp_path / "before", config=small(cross__layers=there))
        config = small(task="vqa", vqa__decoder_layers=layers, cross__layers=there)
    found = imported(tmp_path / "before", config=config)
    wanted = {path for path in flat(task_type(config).parameter_shapes(config)) if path.startswith("answer_decoder/")}
    decoder = {path: value for path, value in found.params.items() if path.startswith("answer_decoder/")}
    initial = set() if of == "answer_decoder" else {"answer_decoder/position_embedding"}
    assert wanted - set(decoder) == initial == set(found.report["loaded"][0]["initial"])
    for path, value in decoder.items():
        _, part, *rest = path.split("/")
        if part.startswith("block_"):
            part = f"block_{blocks[int(part.removeprefix('block_'))]}"
        np.testing.assert_array_equal(value, values["/".join((of, part, *rest))])
    said = f"the blocks of answer_decoder start from those of {of}: {', '.join(map(str, blocks))}"
    assert found.report["loaded"][0]["notes"] == ([] if (of, blocks) == ("answer_decoder", (0, 1)) else [said])


def test_questions_start_from_a_run_that_told_no_words(tmp_path):
    before = exported(tmp_path / "before", config=small(task="nlvr2"))
    found = imported(tmp_path / "before", config=small(task="vqa", vqa__decoder_layers=1))
    assert found.report["at_initial_values"] == ["token_classifier"]
    assert found.params.keys() >= {path for path in before if not path.startswith("classification_head/")}


def test_words_that_were_told_by_another_head_are_refused(tmp_path):
    exported(tmp_path / "before", config=small(model__token_head="tied"))
    with pytest.raises(
        UserError, match="no parameter token_classifier/kernel.*; give the run's values in config.image_encoder"
    ):
        imported(tmp_path / "before", config=small(task="vqa"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (sizes(width=32), "has .* with the shape .* the model"),
        (sizes(layers=2), "with the shape .* the model"),
        (sizes(heads=4), "was trained with config.image_encoder.heads=2, not 4"),
        ({"text_encoder.kind": "bert"}, "was trained with config.text_encoder.kind='roberta'"),
        ({"cross.layers": 2}, "has no parameter .*cross_encoder/block_1"),
    ],
)
def test_checkpoints_that_do_not_fit_are_refused(demo_run, changes, message):
    config = read_config(demo_run)
    config.task = "nlvr2"
    config.update_from_flattened_dict(changes)
    with pytest.raises(UserError, match=message):
        import_checkpoint(str(demo_run), shapes=task_type(config).parameter_shapes(config), config=config)


def test_another_pooling_is_refused_where_the_model_compares(tmp_path):
    exported(tmp_path / "before", config=small(text_encoder__pooling="mean"))
    with pytest.raises(UserError, match="was trained with config.text_encoder.pooling='mean', not 'first'"):
        imported(tmp_path / "before", config=small())
    imported(tmp_path / "before", config=small(task="nlvr2"))  # which has no projection


def test_what_is_no_checkpoint_is_refused_in_one_line(data_dir, tmp_path, capsys):
    given = flags("entailment", data_dir=data_dir, workdir=tmp_path / "run", start=tmp_path)
    assert train.run(given) == 2
    assert "mvlm train: " in capsys.readouterr().err
    config = recipe("demo")
    config.update_from_flattened_dict(SMALLER)
    with pytest.raises(UserError, match="neither the workdir of a run nor a folder"):
        import_checkpoint(str(tmp_path), shapes=task_type(config).parameter_shapes(config), config=config)
    assert not (tmp_path / "run").exists()
