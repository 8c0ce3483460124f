"""The page of the demo run of the tests, and of a copy of it with an evaluation, faults and another run beside it."""

import json
import re
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from html_page import Page, problems
from PIL import Image

from mvlm_jax.cli import report as report_command
from mvlm_jax.errors import UserError
from mvlm_jax.report.heat_maps import attended, painted
from mvlm_jax.report.page import picture, render
from mvlm_jax.report.run import event_starts, read_run


@pytest.fixture(scope="module")
def run_dir(demo_run, tmp_path_factory):
    """A copy, since the page goes into it."""
    directory = tmp_path_factory.mktemp("report") / "a <b>run</b>"
    shutil.copytree(demo_run, directory)
    return directory


@pytest.fixture(scope="module")
def page(run_dir):
    """The page as the command writes it."""
    assert report_command.run([f"--workdir={run_dir}", "--examples=2"]) == 0
    return (run_dir / "report.html").read_text()


def test_the_page_stands_alone_and_shows_what_it_promises(page, run_dir):
    assert problems(page) == []
    assert len(page) < 5_000_000
    for section in ("verdict", "examples", "curves", "configuration", "data", "origin", "next"):
        assert f'<h2 id="{section}">' in page
    assert "<b>run" not in page and "a &lt;b&gt;run&lt;/b&gt;" in page
    # Two pairs of five columns, and of retrieval two best and two worst of both directions.
    images = Page(page).all("img")
    assert len(images) == 2 * 5 + 4 * 3 + 4
    assert all(image["src"].startswith("data:image/") for image in images)
    assert page.count('<svg viewBox="0 0 360 190"') > 8
    texts = "".join(re.findall(r"<pre>(.*?)</pre>", page, re.DOTALL))
    assert all(f"mvlm {name} " in texts for name in ("evaluate", "weights export", "train", "report"))


def test_a_word_that_was_hidden_is_marked_as_right_or_wrong(page):
    filled = re.findall(r'<span class="filled (good|bad)"(?: title="hidden: ([^"]*)")?>([^<]*)</span>', page)
    # Of both captions, beside the own image, a wrong one and none.
    assert len(filled) >= 6
    for kind, word, guess in filled:
        assert guess.endswith(" ✓" if kind == "good" else " ✗") and bool(word) == (kind == "bad")


def test_a_run_without_a_checkpoint_has_a_page_that_says_so(demo_run, tmp_path):
    for name in ("config.json", "tokenizer.json"):
        shutil.copy(demo_run / name, tmp_path)
    assert report_command.run([f"--workdir={tmp_path}"]) == 0
    page = (tmp_path / "report.html").read_text()
    assert problems(page) == []
    assert "no checkpoint yet" in page and "metrics.jsonl holds no line of training" in page
    assert "No evaluation yet" in page and "not recorded" in page


def test_damaged_files_and_recorded_starts_are_told(demo_run, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(demo_run, run)
    (run / "eval" / "broken.json").write_text('{"step": 6,')
    command = "mvlm train --config=demo --workdir=run"
    start = {"time": 1.8e9, "step": 0, "command": command, "commit": "c0ffee", "devices": 8, "device_kind": "cpu"}
    record = {"run": "1", "starts": [start, {**start, "step": 4, "time": 1.8e9 + 60}]}
    (run / "environment.json").write_text(json.dumps(record))
    assert report_command.run([f"--workdir={run}", "--examples=0", f"--output={tmp_path}/page.html"]) == 0
    page = (tmp_path / "page.html").read_text()
    assert problems(page) == []
    assert "eval/broken.json" in page and "c0ffee" in page and "8 x cpu" in page
    assert "2027-01-15 08:00 UTC; 2 starts" in page and "No examples were asked for" in page
    assert "The recipe <code>demo</code>" in page and f"<pre>{command}</pre>" in page
    assert "resumed after step 4" in page


def test_starts_are_read_from_the_events_files_of_the_run(demo_run):
    assert event_starts(demo_run) == [0]
    run = read_run(demo_run)
    assert run.starts == [0]
    assert (run.checkpoints[-1], run.last_step, run.is_finished) == (6, 6, True)


def test_two_runs_stand_side_by_side(run_dir, demo_run, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(demo_run, other)
    file = other / "eval" / "retrieval-shapes-val.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"tr_r1": 100.0}))
    config = json.loads((other / "config.json").read_text())
    config["optimizer"]["peak"] = 0.25
    (other / "config.json").write_text(json.dumps(config))
    flags = [f"--workdir={run_dir}", f"--compare={other}", "--examples=0"]
    assert report_command.run([*flags, f"--output={tmp_path}/both.html"]) == 0
    page = (tmp_path / "both.html").read_text()
    assert problems(page) == []
    before = json.loads((run_dir / "eval" / "retrieval-shapes-val.json").read_text())["tr_r1"]
    page = page.replace("<wbr>", "")
    [row] = re.findall(r"<tr><td>tr_r1</td>(.*?)</tr>", page)
    cells = re.findall(r"<td[^>]*>([^<]*)</td>", row)
    assert cells[1:3] == ["100", f"+{100 - before:.4g}"]
    assert re.search(r"<td>optimizer.peak</td><td>0.002</td><td>0.25</td>", page)
    assert page.count('class="line c1"') > 8


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--workdir={here}"], "is not the workdir of a run"),
        (["--workdir={run}", "--compare={run}"], "is the run itself"),
        (["--workdir={run}", "--compare={here}"], "is not the workdir of a run"),
        (["--workdir={run}", "--step=5"], "checkpoint"),
        (["--workdir={run}", "--config.seed=1", "--config.image.size=64"], "is the workdir of another config"),
        (["--workdir={run}", "--examples=-1"], "--examples"),
        (["--workdir={run}", "--output={here}"], "is a directory; give the path of a file"),
        (["--workdir={run}", "--output={here}/none/page.html"], "does not exist"),
    ],
)
def test_what_cannot_be_reported_is_one_line(words, message, run_dir, tmp_path, capsys):
    assert report_command.run([word.format(here=tmp_path, run=run_dir) for word in words]) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


def test_a_missing_dataset_leaves_a_remark_in_place_of_examples(run_dir, tmp_path):
    flags = [f"--workdir={run_dir}", f"--config.data.data_dir={tmp_path}", f"--output={tmp_path}/page.html"]
    assert report_command.run(flags) == 0
    page = (tmp_path / "page.html").read_text()
    assert problems(page) == [] and "No examples: dataset &#39;shapes&#39; is not prepared" in page


def test_words_are_shown_where_they_are_found():
    """With a model that finds the first word in the upper left patch, and nothing for the second."""
    pixels = np.random.default_rng(0).integers(0, 255, (8, 8, 3), dtype=np.uint8)
    maps = np.zeros((2, 2, 2), np.float32)
    maps[0, 0, 0] = 0.3

    def attention(image, text):
        if not text:
            raise UserError("'' holds no word")
        return SimpleNamespace(words=("red", "star"), maps=maps, match=0.5, image=np.asarray(image))

    model = SimpleNamespace(task=SimpleNamespace(verbs=("attention",)), attention=attention)
    [card] = attended(model, [Image.fromarray(pixels)] * 2, ["red star", ""])
    assert (card.text, card.remark, [one.word for one in card.words]) == ("red star", "match 50%", ["red", "star"])
    found, nothing = (np.asarray(painted(pixels, heat)) for heat in maps)
    np.testing.assert_array_equal(found[:4, :4], pixels[:4, :4])
    np.testing.assert_array_equal(found[4:], nothing[4:])
    assert np.ptp(nothing[4:].astype(int), axis=2).max() < 12  # next to grey
    assert attended(SimpleNamespace(task=SimpleNamespace(verbs=())), [], []) == []


def test_an_image_is_kept_exact_where_it_is_small():
    assert picture(Image.new("RGB", (48, 48)), alt="a").uri.startswith("data:image/png")
    assert picture(Image.new("RGB", (224, 224)), alt="a").uri.startswith("data:image/jpeg")


def test_a_template_that_lacks_a_value_is_an_error():
    with pytest.raises(Exception, match="is undefined"):
        render("batch.html", title="x")
