"""The published layouts of VQA v2, NLVR2 and SNLI-VE, with entries as they were published."""

import json

import pytest
from examples import encoded, picture

from mvlm_jax.config_migration import modern_uri
from mvlm_jax.data.formats.nlvr2 import open_nlvr2
from mvlm_jax.data.formats.snli_ve import open_snli_ve
from mvlm_jax.data.formats.vqa import in_minival, open_vqa, submission
from mvlm_jax.data.images import AbsentImage
from mvlm_jax.data.labelled import LabelledRow, LabelledSource, ListedExamples, answer_list
from mvlm_jax.data.sources import open_labelled, open_source, split_name
from mvlm_jax.errors import UserError


def write_vqa(directory, name, *, images, annotated=True):
    questions = [
        {"image_id": image, "question": f"What is this? {image}", "question_id": 1000 * image + number}
        for image in images
        for number in range(2)
    ]
    header = {"info": {"version": "2.0"}, "task_type": "Open-Ended", "data_type": "mscoco", "license": {}}
    content = {**header, "data_subtype": name, "questions": questions}
    (directory / f"v2_OpenEnded_mscoco_{name}_questions.json").write_text(json.dumps(content))
    if annotated:
        annotations = [
            {
                "question_type": "what is this",
                "multiple_choice_answer": "net",
                "answers": [
                    {"answer": "net" if n < 7 else "netting", "answer_confidence": "yes", "answer_id": n + 1}
                    for n in range(10)
                ],
                "image_id": question["image_id"],
                "answer_type": "other",
                "question_id": question["question_id"],
            }
            # Published in another order than the questions.
            for question in reversed(questions)
        ]
        content = {**header, "data_subtype": name, "annotations": annotations}
        (directory / f"v2_mscoco_{name}_annotations.json").write_text(json.dumps(content))


def test_questions_of_vqa_have_their_ten_answers_and_their_image(tmp_path):
    write_vqa(tmp_path, "train2014", images=[9, 458752])
    (tmp_path / "train2014").mkdir()
    (tmp_path / "train2014" / "COCO_train2014_000000458752.jpg").write_bytes(encoded(picture(), "JPEG"))
    source = open_vqa(tmp_path, "train")
    assert isinstance(source, LabelledSource)
    assert len(source) == 4
    example = source[2]
    assert example["images"] == [encoded(picture(), "JPEG")]
    assert example["text"] == "What is this? 458752"
    assert example["answers"] == ["net"] * 7 + ["netting"] * 3
    assert (example["answer_type"], example["example_id"]) == ("other", "458752000")
    with pytest.raises(AbsentImage, match="absent.*COCO_train2014_000000000009"):
        source[0]


@pytest.mark.parametrize("name", ["a\0b.jpg", "a" * 300, "loop.jpg"])
def test_image_whose_path_cannot_be_followed_is_left_out(tmp_path, name):
    (tmp_path / "loop.jpg").symlink_to(tmp_path / "loop.jpg")
    source = ListedExamples([LabelledRow((name,), "a dog?", ("yes",), "", "", "1")], root=tmp_path)
    with pytest.raises(AbsentImage):
        source[0]


def test_test_questions_have_no_answers_and_share_the_test_images(tmp_path):
    for name in ("test2015", "test-dev2015"):
        write_vqa(tmp_path, name, images=[1], annotated=False)
    for split in ("test", "test-dev"):
        row = open_vqa(tmp_path, split).row(0)
        assert row.answers == ()
        assert row.images == ("test2015/COCO_test2015_000000000001.jpg",)


def test_minival_shares_no_image_with_what_is_trained_on(tmp_path):
    write_vqa(tmp_path, "train2014", images=range(1000, 1050))
    write_vqa(tmp_path, "val2014", images=range(400))
    trainval, minival = (open_vqa(tmp_path, split) for split in ("trainval", "minival"))
    images = [{source.row(i).images[0] for i in range(len(source))} for source in (trainval, minival)]
    assert not images[0] & images[1]
    assert len(images[0] | images[1]) == 450
    assert 400 / 16 / 2 < len(images[1]) < 400 / 16 * 2
    assert all(in_minival(minival.row(i)) for i in range(len(minival)))


def test_answer_lists_hold_the_commonest_answers_of_the_training_questions(tmp_path):
    write_vqa(tmp_path, "train2014", images=[1, 2])
    source = open_vqa(tmp_path, "train")
    assert answer_list(map(source.row, range(len(source))), size=10) == ["net", "netting"]
    assert answer_list(map(source.row, range(len(source))), size=1) == ["net"]


def test_annotations_of_no_question_are_counted_and_those_that_come_again_refused(tmp_path):
    write_vqa(tmp_path, "train2014", images=[1])
    file = tmp_path / "v2_mscoco_train2014_annotations.json"
    content = json.loads(file.read_text())
    first = content["annotations"][0]
    content["annotations"].append({**first, "question_id": 7})
    file.write_text(json.dumps(content))
    assert open_vqa(tmp_path, "train").left_out.as_dict() == {"no_such_question": {"count": 1, "ids": ["7"]}}
    content["annotations"].append(first)
    file.write_text(json.dumps(content))
    with pytest.raises(UserError, match=f"annotates the question {first['question_id']} more than once"):
        open_vqa(tmp_path, "train")


def test_submissions_are_what_evalai_takes():
    assert submission({"262148000": "net"}) == [{"question_id": 262148000, "answer": "net"}]


NLVR2_LINE = {
    "validation": {"77": "True"}, "sentence": "All the bottles are from the same brand.", "left_url": "https://a/b.jpg",
    "writer": "103", "label": "True", "right_url": "https://a/c.jpg", "synset": "beer bottle",
    "query": "some beer bottles2", "identifier": "dev-189-0-1", "extra_validations": {"56": "True"},
}  # fmt: skip


def test_statements_of_nlvr2_have_two_images_and_a_group(tmp_path):
    other = NLVR2_LINE | {"identifier": "dev-189-3-1", "label": "False"}
    (tmp_path / "dev.json").write_text("\n".join(map(json.dumps, [NLVR2_LINE, other])) + "\n")
    train = NLVR2_LINE | {"identifier": "train-10171-0-0", "directory": 74, "label": "False"}
    (tmp_path / "train.json").write_text(json.dumps(train) + "\n")
    source = open_nlvr2(tmp_path, "dev")
    first, second = (source.row(i) for i in range(2))
    assert first.images == ("images/dev/dev-189-0-img0.png", "images/dev/dev-189-0-img1.png")
    assert (first.text, first.answers) == ("All the bottles are from the same brand.", ("True",))
    assert second.answers == ("False",)
    assert first.group == second.group == "dev-189-1"
    assert open_nlvr2(tmp_path, "train").row(0).images[1] == "images/train/74/train-10171-0-img1.png"


SNLI_VE_LINE = {
    "annotator_labels": ["neutral", "entailment", "neutral"], "captionID": "4705552913.jpg#2", "gold_label": "neutral",
    "pairID": "4705552913.jpg#2r1n", "sentence1": "Two women are embracing.", "sentence1_binary_parse": "( )",
    "sentence1_parse": "(ROOT)", "sentence2": "The sisters are hugging goodbye.", "sentence2_binary_parse": "( )",
    "sentence2_parse": "(ROOT)", "Flickr30K_ID": "4705552913",
}  # fmt: skip


def test_hypotheses_of_snli_ve_have_their_label_and_their_image(tmp_path):
    undecided = SNLI_VE_LINE | {"gold_label": "-"}
    (tmp_path / "snli_ve_dev.jsonl").write_text("\n".join(map(json.dumps, [undecided, SNLI_VE_LINE])))
    source = open_snli_ve(tmp_path, "dev")
    assert len(source) == 1
    row = source.row(0)
    assert row.images == ("flickr30k-images/4705552913.jpg",)
    assert (row.text, row.answers) == ("The sisters are hugging goodbye.", ("neutral",))
    assert row.example_id == "4705552913.jpg#2r1n"


def test_a_directory_may_hold_colons_and_question_marks(tmp_path):
    for name in ("a:b", "what?", "100%20"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "dev.json").write_text(json.dumps(NLVR2_LINE))
        assert open_labelled(f"nlvr2:{tmp_path}/{name}?split=dev", data_dir="").row(0).example_id == "dev-189-0-1"


def refusal(open_uri, uri):
    with pytest.raises(UserError) as caught:
        open_uri(uri, data_dir="")
    return str(caught.value)


@pytest.mark.parametrize("uri", ["coco:DIR?split=train", "vqa:", "VQA"])
def test_other_schemes_are_refused_with_the_legal_ones(uri):
    assert "tfds:<name>:<split>, arrayrecord:" in refusal(open_labelled, uri)
    assert "vqa:<directory>?split=<split>" in refusal(open_labelled, uri)


def test_each_sort_of_source_refuses_the_schemes_of_the_other(tmp_path):
    assert refusal(open_labelled, f"json:{tmp_path}/a.json").endswith(
        "does not hold labelled examples; they are read from tfds:<name>:<split>, vqa:<directory>?split=<split>, "
        "nlvr2:<directory>?split=<split>, snli_ve:<directory>?split=<split>"
    )
    assert "does not hold captioned images; they are read from tfds:" in refusal(open_source, "vqa:DIR?split=val")


def test_a_split_must_be_named_and_exist(tmp_path):
    splits = "train, val, test-dev, test, trainval, minival"
    assert refusal(open_labelled, f"vqa:{tmp_path}").endswith(f"several splits; add ?split= and one of {splits}")
    assert refusal(open_labelled, f"vqa:{tmp_path}?split=dev").endswith(f"no split 'dev'; its splits are {splits}")
    assert "'image'; vqa: takes split" in refusal(open_labelled, f"vqa:{tmp_path}?split=val&image=x")


def test_a_split_behind_a_colon_is_refused_with_the_right_form(tmp_path):
    for uri in (f"vqa:{tmp_path}:val", "snli_ve:SNLI-VE:dev"):
        path, _, split = uri.rpartition(":")
        expected = f"source {uri!r} names its split as earlier versions did; write {path}?split={split}"
        assert refusal(open_labelled, uri) == refusal(lambda uri, data_dir: split_name(uri), uri) == expected


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("vqa:/data/a:b/VQA:test-dev", "vqa:/data/a:b/VQA?split=test-dev"),
        ("vqa:VQA:train + 0.5*nlvr2:~/my data:dev", "vqa:VQA?split=train + 0.5*nlvr2:~/my data?split=dev"),
        ("2*tfds:shapes_vqa:val[:50]", "2*tfds:shapes_vqa:val[:50]"),
        ("vqa:/data/a:b/VQA?split=val", "vqa:/data/a:b/VQA?split=val"),
        ("json:a:b", "json:a:b"),
    ],
)
def test_uris_of_earlier_versions_are_rewritten(old, new):
    assert modern_uri(old) == modern_uri(new) == new


def test_what_is_not_as_published_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"snli_ve_dev.jsonl' cannot be read"):
        open_snli_ve(tmp_path, "dev")
    with pytest.raises(UserError, match="has no split 'val'; its splits are train, dev, test1, test2"):
        open_nlvr2(tmp_path, "val")
    (tmp_path / "dev.json").write_text(json.dumps(NLVR2_LINE) + "\n{cut")
    with pytest.raises(UserError, match="line 2 of .*dev.json' is not JSON"):
        open_nlvr2(tmp_path, "dev")
    (tmp_path / "dev.json").write_text(json.dumps({"identifier": "dev-1-2", "sentence": "x"}))
    with pytest.raises(UserError, match="entry 0 of .*identifier 'dev-1-2' is not split-set-pair-sentence"):
        open_nlvr2(tmp_path, "dev")
    write_vqa(tmp_path, "train2014", images=[1])
    (tmp_path / "v2_mscoco_train2014_annotations.json").write_text(json.dumps({"annotations": [{"question_id": 1}]}))
    with pytest.raises(
        UserError, match="entry 0 of .*annotations.json' is not as it was published: KeyError 'answers'"
    ):
        open_vqa(tmp_path, "train")
