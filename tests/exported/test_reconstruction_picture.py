"""The picture with which `make demo` ends."""

import importlib.util
import json
import shutil

import numpy as np
import pytest
from PIL import Image
from tiny import ROOT

import mvlm_jax
from mvlm_jax.errors import UserError
from mvlm_jax.report.batch import MASKED
from mvlm_jax.report.reconstruction import (
    GAP,
    LINE,
    MARGIN,
    Filled,
    Rebuilt,
    draw,
    rebuild,
    words_seen,
    write_reconstruction,
)

CAPTIONS = [
    "a large red circle top left, a small star top right",
    "a small green cross bottom left",
    "a blue star",
]


@pytest.fixture(scope="module")
def model(export):
    return mvlm_jax.load(export, batch_size=1)


@pytest.fixture(scope="module")
def images():
    pixels = np.random.default_rng(0).integers(0, 200, (3, 32, 32, 3), dtype=np.uint8)
    return [Image.fromarray(image) for image in pixels]


@pytest.fixture(scope="module")
def rebuilt(model, images):
    return rebuild(model, images, CAPTIONS)


def test_columns_are_what_the_model_paints_beside_each_partner(model, images, rebuilt):
    for index, row in enumerate(rebuilt):
        whole, seen, own, wrong, none = (np.asarray(image) for image in row.images)
        np.testing.assert_array_equal(whole, images[index])
        hidden = (seen == MASKED).all(axis=2)
        np.testing.assert_array_equal(seen[~hidden], whole[~hidden])
        # ceil(0.6 * 4) cells of 16 pixels, each hidden whole.
        cells = hidden.reshape(2, 16, 2, 16).transpose(0, 2, 1, 3).reshape(4, -1)
        assert sorted(cells.mean(axis=1).tolist()) == [0, 1, 1, 1]
        following = CAPTIONS[(index + 1) % 3]
        assert (row.caption, row.wrong_caption) == (CAPTIONS[index], following)
        for painted, partner in ((own, CAPTIONS[index]), (wrong, following), (none, None)):
            np.testing.assert_array_equal(painted, model.reconstruct(images[index], partner, hidden[::8, ::8]))
        assert (own != wrong).any() and (own != none).any()


def test_words_are_filled_as_the_model_guesses_them(model, images, rebuilt):
    for index, row in enumerate(rebuilt):
        words = CAPTIONS[index].split()
        beside = (row.beside_own, row.beside_wrong, row.alone)
        for filled, image in zip(beside, (images[index], images[(index + 1) % 3], None), strict=True):
            assert [word for word, _ in filled] == words
            blanks = [place for place, (_, guess) in enumerate(filled) if guess is not None]
            assert len(blanks) == max(1, round(0.3 * len(words)))
            masked = [
                "<mask>" + "," * word.endswith(",") if place in blanks else word for place, word in enumerate(words)
            ]
            guesses = [best for [(best, _)] in model.fill_mask(" ".join(masked), image, top=1)]
            assert [filled[place].guess for place in blanks] == guesses


def test_only_words_that_the_model_sees_are_hidden(model, images):
    limit, config = model.config.text.max_length, model.config
    many = " ".join(["a"] * 3 * limit)  # a token each; start and end take two of the limit
    assert words_seen(model, many.split()) == limit - 2
    assert words_seen(model, ["x" * 500]) == 0
    first, second = rebuild(model, images[:2], [many, "x" * 500])
    hidden = [place for place, (_, guess) in enumerate(first.beside_own) if guess is not None]
    assert len(hidden) == max(1, round(config.mask.text_ratio * (limit - 2))) and max(hidden) < limit - 2
    assert [filled.guess for filled in second.alone] == [None]


def test_rows_are_drawn_below_each_other_with_right_and_wrong_words_in_colour():
    def row(level, filled):
        images = [Image.new("RGB", (66, 66), (level + column,) * 3) for column in range(5)]
        return Rebuilt(images, "a red circle", "a star", filled, filled)

    rows = [row(0, [Filled("a"), Filled("red,", "red")]), row(100, [Filled("a", "the")])]
    picture = np.asarray(draw(rows))
    side = 2 * 66
    assert picture.shape[1] == 2 * MARGIN + 5 * side + 4 * GAP
    top = MARGIN + LINE + 2
    below = top + side + 4 + 4 * LINE + GAP
    for y, level in ((top, 0), (below, 100)):
        for column in range(5):
            x = MARGIN + column * (side + GAP)
            assert (picture[y : y + side, x : x + side] == level + column).all()
    # Of the words, only right ones are greenish and only wrong ones reddish.
    texts = [picture[y + side : y + side + 4 + 4 * LINE].astype(int) for y in (top, below)]
    (right, none), (nothing, wrong) = (((t[..., 1] - t[..., 0]).max(), (t[..., 0] - t[..., 1]).max()) for t in texts)
    assert right > 50 > none and wrong > 50 > nothing


def test_long_captions_are_wrapped_and_nothing_is_cut():
    images = [Image.new("RGB", (48, 48), "black")] * 5
    short, long = (draw([Rebuilt(images, "star " * count, "a", [], [])]) for count in (2, 100))
    assert long.width == short.width and long.height >= short.height + 2 * LINE
    margin = np.asarray(long)[:, -MARGIN:]
    assert (margin == 255).all()


def test_a_file_that_cannot_be_written_is_one_line(model, images, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="the picture cannot be written to '.*/file/picture.png': Not a directory"):
        write_reconstruction(model, images, CAPTIONS, file=tmp_path / "file" / "picture.png")


@pytest.fixture
def demo():
    """The program behind `make demo`."""
    spec = importlib.util.spec_from_file_location("launch_demo", ROOT / "launch" / "demo.py")
    demo = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(demo)
    return demo


def test_the_demo_ends_with_its_picture_and_one_json_object(demo, demo_run, tmp_path, monkeypatch, capsys):
    run, trained = tmp_path / "run", []
    monkeypatch.setattr(demo.prepare, "run", lambda argv: 0)
    monkeypatch.setattr(demo.train, "run", lambda argv: trained.extend(argv) or shutil.copytree(demo_run, run) and 0)
    monkeypatch.setattr("sys.argv", ["demo.py", f"--workdir={run}", "--config.steps=6"])
    assert demo.main() == 0
    assert trained[0] == "--config=demo" and "--config.steps=6" in trained
    *_, named, report, last = capsys.readouterr().out.splitlines()
    file = run / "reconstruction.png"
    assert named == f"what it rebuilds: {file}"
    assert report == f"the run as a page, for a browser: {run / 'report.html'}"
    assert 50_000 < (run / "report.html").stat().st_size < 5_000_000
    summary = json.loads(last)
    assert set(summary) == {
        "tr_r1", "ir_r1", "tr_r1_rerank", "ir_r1_rerank", "mlm_gain", "mim_gain", "mim_gain_informative", "seconds",
        "workdir",
    }  # fmt: skip
    with Image.open(file) as picture:
        assert picture.format == "PNG" and picture.width > 600 and picture.height > 800
    assert file.stat().st_size < 150_000


def test_the_demo_takes_only_fields_of_its_config(demo, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["demo.py", "--steps=6"])
    with pytest.raises(SystemExit) as end:
        demo.main()
    assert end.value.code == 2
    assert (
        "unknown argument '--steps=6'; a field of the config is given as --config.name=value" in capsys.readouterr().err
    )
