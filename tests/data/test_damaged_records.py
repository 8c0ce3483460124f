"""One byte of one record turned over, and one record that is no example: both are left out, counted and reported."""

from pathlib import Path

import pytest
from array_record.python.array_record_module import ArrayRecordWriter
from examples import encoded, pair_source, picture
from tiny import recipe

from mvlm_jax.cli import prepare as prepare_command
from mvlm_jax.data import pipeline
from mvlm_jax.data.augmentation import Augment
from mvlm_jax.data.builders import shapes_tasks
from mvlm_jax.data.collection import Collection
from mvlm_jax.data.images import ImageSpec, UndecodableImage
from mvlm_jax.data.labelled_pipeline import LabelledSplit
from mvlm_jax.data.mixtures import Component, Mixture, subset
from mvlm_jax.data.sources import open_labelled, open_source
from mvlm_jax.data.writing.dataset import read_manifest, write_dataset
from mvlm_jax.data.writing.shards import serialize
from mvlm_jax.doctor.check import Limits, check_collection
from mvlm_jax.errors import UserError
from mvlm_jax.tasks.registry import open_task

DAMAGED = 5  # the record of which a byte is turned over
LIMITS = Limits(max_pixels=10**6, image_size=32, max_length=16)
SPEC = ImageSpec(size=16, max_pixels=10**6)
AUGMENT = Augment(min_scale=0.5, flip=False, operations=0, magnitude=0)


def turn_a_byte_over(directory: Path, image: bytes) -> None:
    """Damages the record that holds an image."""
    for file in directory.glob("*.array_record*"):
        data = bytearray(file.read_bytes())
        if (start := data.find(image)) >= 0:
            data[start + len(image) // 2] ^= 0xFF
            file.write_bytes(data)
            return
    raise AssertionError("the image is in no file as it is")


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """Twelve pairs of which number 5 is damaged."""
    data_dir = tmp_path_factory.mktemp("damaged")
    source = pair_source(12)
    written = write_dataset(Collection({"train": source}, "memory"), name="pairs", data_dir=data_dir)
    turn_a_byte_over(written, source[DAMAGED]["image"])
    return data_dir


@pytest.fixture(scope="module", params=["by name", "by pattern"])
def damaged(request, data_dir):
    """The same records with their ids in a file of their own, and without."""
    by_pattern = f"arrayrecord:{data_dir}/pairs/1.0.0/*.array_record*"
    return open_source("tfds:pairs:train" if request.param == "by name" else by_pattern, data_dir=str(data_dir))


def id_of_damaged(source) -> str:
    return f"image-{DAMAGED}" if source._parts[0].ids else f"record {DAMAGED}"


def test_the_others_are_read_as_before(damaged):
    with pytest.raises(UndecodableImage, match=f"corrupt: record {DAMAGED}: RuntimeError Corrupted") as caught:
        damaged[DAMAGED]
    assert caught.value.reason == "corrupt"
    others = [index for index in range(12) if index != DAMAGED]
    assert [damaged[index]["image_id"] for index in others] == [f"image-{index}" for index in others]
    assert damaged.example_id(DAMAGED) == id_of_damaged(damaged)


def test_a_run_steps_over_it(damaged):
    mixture = Mixture([Component(damaged, records=subset(damaged, fraction=1.0, seed=0))])
    examples = pipeline.PairExamples(mixture=mixture, seed=0, spec=SPEC, augment=AUGMENT)
    seen = [examples[index] for index in range(12)]
    assert {example.image_id for example in seen} == {f"image-{index}" for index in range(12) if index != DAMAGED}
    assert sum(example.skipped for example in seen) == 1
    assert list(mixture.captions()) == ["a caption"] * 11


def test_an_evaluation_leaves_it_out_and_counts_it(damaged, tokenizer):
    split = pipeline.eval_split(damaged, tokenizer, host_bytes=2**20, spec=SPEC, max_length=16)
    assert len(split) == 11 and split.left_out == {"corrupt": 1}


def test_the_doctor_reports_it(damaged):
    result = check_collection(Collection({"train": damaged}, "memory"), limits=LIMITS, tokenizer=None)
    found = [finding for finding in result.findings if finding.fault == "undecodable"]
    assert [(finding.id, finding.place.index) for finding in found] == [(id_of_damaged(damaged), DAMAGED)]
    assert "Corrupted" in found[0].detail


def test_prepare_leaves_it_out_and_counts_it(damaged, tmp_path):
    written = write_dataset(Collection({"train": damaged}, "memory"), name="again", data_dir=tmp_path)
    split = read_manifest(written)["splits"]["train"]
    assert split["examples"] == 11
    assert split["skipped"] == {"corrupt": {"count": 1, "ids": [id_of_damaged(damaged)]}}


def test_check_writes_its_report(data_dir, tmp_path):
    source = "--source=tfds:pairs:train"
    flags = [f"--data_dir={data_dir}", f"--report_dir={tmp_path}", "--policy=undecodable"]
    assert prepare_command.run(["--check", "--dataset=pairs", source, *flags]) == 1
    assert (tmp_path / "check.html").is_file()


def test_files_whose_first_record_is_damaged_can_be_opened(tmp_path):
    source = pair_source(3)
    written = write_dataset(Collection({"train": source}, "memory"), name="first", data_dir=tmp_path)
    turn_a_byte_over(written, source[0]["image"])
    opened = open_source(f"arrayrecord:{written}/*.array_record*", data_dir="")
    assert [opened.example_id(index) for index in range(3)] == ["record 0", "image-1", "image-2"]


def test_a_record_that_is_no_such_example_is_left_out(tmp_path):
    image = encoded(picture())
    whole = {"image": [image], "captions": [b"a"], "image_id": [b"one"]}
    writer = ArrayRecordWriter(f"{tmp_path}/x.array_record", "group_size:1")
    for record in (serialize(whole), b"\xff\xff", serialize({"image": [image]}), serialize({**whole, "image": []})):
        writer.write(record)
    writer.close()
    source = open_source(f"arrayrecord:{tmp_path}/x.array_record", data_dir="")
    result = check_collection(Collection({"train": source}, "memory"), limits=LIMITS, tokenizer=None)
    found = [(finding.id, finding.place.index) for finding in result.findings if finding.fault == "undecodable"]
    assert found == [("record 1", 1), ("record 2", 2), ("one", 3)]


def test_a_file_that_has_gone_is_no_damaged_record(tmp_path):
    written = write_dataset(Collection({"train": pair_source(3)}, "memory"), name="gone", data_dir=tmp_path)
    source = open_source("tfds:gone:train", data_dir=str(tmp_path))
    for file in written.glob("*.array_record*"):
        file.unlink()
    with pytest.raises(UserError, match=r"record 1 cannot be read: open\(\) failed: No such file") as caught:
        source[1]
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def questions(tmp_path_factory):
    """A directory with questions of which one is damaged, and how many there are."""
    data_dir = tmp_path_factory.mktemp("questions")
    drawn = shapes_tasks.collection("shapes_vqa", train=8, val=4, test=4)
    written = write_dataset(drawn, name="shapes_vqa", data_dir=data_dir)
    turn_a_byte_over(written, drawn.splits["train"][0]["images"][0])
    return data_dir, len(drawn.splits["train"])


def test_a_damaged_question_is_left_out_of_an_evaluation(questions, tokenizer):
    data_dir, count = questions
    source = open_labelled("tfds:shapes_vqa:train", data_dir=str(data_dir))
    split = LabelledSplit(source=source, tokenizer=tokenizer, images=1, spec=SPEC, max_length=16)
    read = list(split.batches(8))
    assert sum(len(rows) for _, rows, _ in read) == count - 1
    left_out = [(row.example_id, reason) for _, _, unusable in read for row, reason in unusable]
    assert left_out == [("shapes_vqa-train-000000", "corrupt")]


def test_a_damaged_question_is_not_read_for_answers_and_words(questions):
    config = recipe("finetune_vqa", "shapes")
    config.data.data_dir, config.init_from.checkpoint = str(questions[0]), ""
    task = open_task(config, workdir="")
    assert set(task.answers) > {"yes", "no"}
