"""A folder is embedded once; what is found is what the model computes for it."""

import json
import os
import shutil

import numpy as np
import pytest
from PIL import Image

import mvlm_jax
from mvlm_jax.cli import search
from mvlm_jax.data.builders import shapes
from mvlm_jax.errors import UserError
from mvlm_jax.inference import image_files
from mvlm_jax.search import embedding
from mvlm_jax.search.embedding import update
from mvlm_jax.search.index import NAME, Index, read_index
from mvlm_jax.search.query import by_image, by_texts

TEXTS = ["a red circle", "a small blue star"]


@pytest.fixture(scope="module")
def model(export):
    return mvlm_jax.load(export, batch_size=4)


@pytest.fixture(scope="module")
def drawn():
    return [shapes.render(scene) for _, scene in shapes.scenes(counts={"val": 7, "test": 0, "train": 0}, seed=3)]


@pytest.fixture
def folder(drawn, tmp_path):
    folder = tmp_path / "images"
    (folder / "more").mkdir(parents=True)
    for number, image in enumerate(drawn):
        image.save(folder / ("more" if number % 2 else ".") / f"{number}.png")
    (folder / "broken.jpg").write_bytes(b"not an image")
    (folder / "gone.png").symlink_to(tmp_path / "nowhere")
    (folder / "notes.txt").write_text("no image at all")
    os.mkfifo(folder / "pipe.png")  # reading it would wait for ever
    age(folder)
    return folder


def age(folder, *, seconds=60):
    """Lets the files be older than what a file system can tell apart."""
    for path in image_files(folder):
        if path.exists():
            status = path.stat()
            os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns - seconds * 10**9))


def updated(model, folder, **options):
    file = folder / NAME
    index = read_index(file, fingerprint=model.fingerprint)
    return index, update(index, model, folder, file=file, **options)


def test_what_is_found_is_what_the_model_ranks(model, folder):
    index, found = updated(model, folder)
    assert found == (0, 9, 7, 0, {"absent": 1, "unrecognized": 1})
    paths = [folder / path for path in index.usable]
    assert len(paths) == 7
    np.testing.assert_allclose(index.embeddings(), model.encode_image(paths), rtol=1e-5, atol=1e-6)
    for rerank in (0, 3):
        ranked = model.rank(paths, TEXTS, top=5, rerank=rerank)
        for hits, results in zip(ranked, by_texts(model, index, folder, TEXTS, top=5, rerank=rerank), strict=True):
            assert [paths[hit.image] for hit in hits] == [result.path for result in results]
            assert [result.match is None for result in results] == [place >= rerank for place in range(5)]
            cosines = [[each.similarity for each in both] for both in (hits, results)]
            np.testing.assert_allclose(*cosines, rtol=1e-5, atol=1e-6)
    [first, *_] = by_image(model, index, folder, paths[4], top=3)
    assert first.path == paths[4] and first.similarity == pytest.approx(1, abs=1e-5) and first.match is None


def test_only_content_that_is_new_is_embedded(model, folder, monkeypatch):
    before, _ = updated(model, folder)
    assert updated(model, folder)[1][:4] == (8, 1, 0, 0)  # the dangling link is looked at again
    os.utime(folder / "0.png")
    (folder / "2.png").rename(folder / "moved.png")
    shutil.copy(folder / "4.png", folder / "copied.png")
    (folder / "6.png").unlink()
    index, found = updated(model, folder)
    assert (found.embedded, found.removed) == (0, 2)
    np.testing.assert_array_equal(index.entries["moved.png"].embedding, before.entries["2.png"].embedding)
    # Another content of the same size and time is found by reading alone.
    age(folder)
    index, _ = updated(model, folder)
    time_before = (folder / "broken.jpg").stat()
    (folder / "broken.jpg").write_bytes(b"none, really")
    os.utime(folder / "broken.jpg", ns=(time_before.st_atime_ns, time_before.st_mtime_ns))
    digest = index.entries["broken.jpg"].digest
    assert updated(model, folder)[0].entries["broken.jpg"].digest == digest
    assert updated(model, folder, rehash=True)[0].entries["broken.jpg"].digest != digest
    # A file that has just changed may change again within the same tick of the clock.
    Image.new("RGB", (9, 9), "red").save(folder / "0.png")
    assert updated(model, folder)[1].embedded == 1
    assert updated(model, folder)[0].entries["0.png"].modified == -1


def test_an_interrupted_update_goes_on_where_it_stopped(model, folder, monkeypatch):
    calls, encode = [], type(model).encode_image

    def interrupted(self, images):
        calls.append(len(images))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return encode(self, images)

    monkeypatch.setattr(type(model), "encode_image", interrupted)
    with pytest.raises(KeyboardInterrupt):
        updated(model, folder)
    monkeypatch.undo()
    _, found = updated(model, folder)
    assert found.embedded == 7 - calls[0] and calls[0] > 0


def test_the_index_is_written_now_and_then(model, folder, monkeypatch):
    monkeypatch.setattr(embedding, "SECONDS", 0.0)
    monkeypatch.setattr(embedding, "SHARE", 0)
    seen = []
    monkeypatch.setattr(Index, "write", lambda self, file: seen.append(len(self.entries)))
    updated(model, folder)
    assert len(seen) > 1 and seen == sorted(seen)


def test_the_index_of_another_model_is_not_used(model, folder, tmp_path):
    index, _ = updated(model, folder)
    assert not read_index(folder / NAME, fingerprint="another").entries
    assert read_index(folder / NAME, fingerprint=model.fingerprint).usable == index.usable
    for content in (b"", b"text", (folder / NAME).read_bytes()[:-20]):
        (tmp_path / "spoilt").write_bytes(content)
        with pytest.raises(UserError, match="remove it to embed again"):
            read_index(tmp_path / "spoilt", fingerprint=model.fingerprint)


def test_the_command_prints_json_and_counts_what_is_left_out(export, model, folder, tmp_path, capsys):
    flags = [f"--model={export}", f"--images={folder}", f"--index={tmp_path / 'index'}", "--batch_size=4"]
    assert search.run([*flags, "--json", "--top=2", *TEXTS]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [query["query"] for query in found["queries"]] == TEXTS
    assert {len(query["results"]) for query in found["queries"]} == {2}
    assert (found["images"], found["embedded"], found["left_out"]) == (7, 7, {"absent": 1, "unrecognized": 1})
    assert search.run([*flags, f"--image={folder / '0.png'}"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].endswith(str(folder / "0.png")) and "match" not in lines[1]
    assert not (folder / NAME).exists()


def test_the_page_shows_thumbnails_and_escapes_names(export, model, folder, tmp_path, capsys):
    os.rename(folder / "0.png", folder / "<b>&0.png")
    page = tmp_path / "found.html"
    flags = [f"--model={export}", f"--images={folder}", f"--page={page}", "--batch_size=4", "--top=7"]
    assert search.run([*flags, "<script>alert(1)</script>"]) == 0
    html = page.read_text()
    assert "<script>alert" not in html and "&lt;b&gt;&amp;0.png" in html
    assert html.count("data:image/png;base64") == 7 and "http" not in html.replace("http-equiv", "")


@pytest.mark.parametrize(
    "given, said",
    [
        ([], "there is neither a text nor --image=FILE"),
        (["a dog", "--image=0.png"], "there is both a text and --image"),
        ([" "], "is empty; give words to search by"),
        (["a dog", "--images=nowhere"], "is not a folder of images"),
        (["a dog", "--page=nowhere/found.html"], "the directory nowhere does not exist"),
        (["a dog", "--index=nowhere/index"], "the directory nowhere does not exist"),
        (["a dog", "--model=nowhere"], "give a folder that mvlm weights export wrote"),
        (["--image=nowhere.png"], "--image ('nowhere.png') cannot be used: absent"),
        (["--image=nowhere.png", "--rerank=3"], "the matching head compares no two images"),
        (["a dog", "--device=tpu"], "device='tpu' is not here"),
    ],
)
def test_a_wrong_flag_is_refused_before_anything_is_embedded(export, folder, capsys, given, said):
    assert search.run([f"--model={export}", f"--images={folder}", *given]) == 2
    errors = capsys.readouterr().err.strip().splitlines()
    assert len(errors) == 1 and said in errors[0]
    assert not (folder / NAME).exists()
