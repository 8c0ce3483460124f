"""Finds the images of a folder that a text describes, or that are like another image.

Example:
  mvlm search --model=exported --images=photos "a dog on the grass"
  mvlm search --model=exported --images=photos --page=found.html "a dog on the grass" "a red car"
  mvlm search --model=exported --images=photos --image=dog.jpg --json

The folder is embedded once: the index is kept beside the images, or in --index=FILE, and only new and changed files
are embedded later. The best images by similarity are ordered anew by the matching head. Images that cannot be used are
left out and counted.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

import mvlm_jax
from mvlm_jax.cli import commands
from mvlm_jax.data.formats.listed import utf8
from mvlm_jax.data.skipped import in_words
from mvlm_jax.errors import UserError
from mvlm_jax.inference import Inference, image_files
from mvlm_jax.search.embedding import Updated, update
from mvlm_jax.search.index import NAME, Index, read_index
from mvlm_jax.search.query import Found, by_image, by_texts
from mvlm_jax.stores.mirror import shown


def define_flags(values: flags.FlagValues, argv: Sequence[str]) -> None:
    commands.define_path(
        values,
        "model",
        "Folder that mvlm weights export wrote, its address in a store, or a name on the Hub.",
        required=True,
        takes=[commands.HUB_NAME, commands.FOLDER],
    )
    commands.define_path(values, "images", "Folder of images, with the folders inside it.", required=True)
    commands.define_path(values, "image", "Image to search by, in the place of a text.")
    commands.define_path(values, "index", f"File of the embeddings; {NAME} in the folder by default.")
    commands.define_path(values, "page", "HTML page of thumbnails to write.", takes=[commands.FILE])
    flags.DEFINE_boolean("json", False, "Print the results as one JSON object.", flag_values=values)
    flags.DEFINE_integer("top", 10, "Images for each query.", lower_bound=1, flag_values=values)
    flags.DEFINE_integer(
        "rerank",
        None,
        "Images for each text that the matching head judges; by default config.eval.rerank of the model.",
        lower_bound=0,
        flag_values=values,
    )
    flags.DEFINE_boolean(
        "rehash", False, "Read every file to see whether it changed, not only its size and time.", flag_values=values
    )
    flags.DEFINE_integer("batch_size", 32, "Images computed at once.", lower_bound=1, flag_values=values)
    flags.DEFINE_string("device", None, "cpu, gpu or tpu; that of JAX by default.", flag_values=values)


def main(values: flags.FlagValues, words: list[str]) -> None:
    _check_flags(values, words)
    folder = values.images
    model = mvlm_jax.load(values.model, batch_size=values.batch_size, device=values.device)
    model.check_verb("rank")
    if values.image:
        model.reader.one(values.image, name="--image")
    file = values.index or folder / NAME
    index = read_index(file, fingerprint=model.fingerprint)
    updated = update(index, model, folder, file=file, rehash=values.rehash)
    left_out = in_words(updated.left_out)
    if not index.usable:
        raise UserError(f"none of the {len(index.entries)} images in --images={folder} can be used ({left_out})")
    results = _results(model, index, values, words)
    count = len(index.usable)
    facts = [
        f"{count:,} images, {updated.embedded:,} of them embedded now; the index is {file}",
        *([f"left out: {left_out}"] if left_out else []),
    ]
    if values.page:
        from mvlm_jax.report.search_page import write_search

        spec = model.reader.spec
        write_search(values.page, results, folder=folder, facts=facts, max_pixels=spec.max_pixels)
    if values.json:
        print(json.dumps(_as_json(results, updated, index=file, images=count)))
    else:
        print("\n".join(map(utf8, facts)), file=sys.stderr)
        for query, hits in results.items():
            print(utf8(query))
            for found in hits:
                match = "" if found.match is None else f"match {found.match:6.1%}  "
                print(f"  {match}cosine {found.similarity:6.3f}  {utf8(str(found.path))}")
        if values.page:
            print(f"page: {shown(values.page)}")


def _results(model: Inference, index: Index, values: flags.FlagValues, words: Sequence[str]) -> dict[str, list[Found]]:
    if values.image:
        return {f"like {values.image}": by_image(model, index, values.images, values.image, top=values.top)}
    rerank = model.reranked_by_default if values.rerank is None else values.rerank
    found = by_texts(model, index, values.images, words, top=values.top, rerank=rerank)
    return dict(zip(words, found, strict=True))


def _as_json(results: dict[str, list[Found]], updated: Updated, *, index: Path, images: int) -> dict[str, Any]:
    return {
        "queries": [
            {
                "query": query,
                "results": [
                    {"path": str(found.path), "similarity": found.similarity, "match": found.match} for found in hits
                ],
            }
            for query, hits in results.items()
        ],
        "index": str(index),
        "images": images,
        **updated._asdict(),
    }


def _check_flags(values: flags.FlagValues, words: Sequence[str]) -> None:
    """Before anything is embedded."""
    if bool(words) == bool(values.image):
        received = "both a text and --image" if words else "neither a text nor --image=FILE"
        raise UserError(f'there is {received}; give one, as in mvlm search … "a dog on the grass"')
    if empty := [word for word in words if not word.strip()]:
        raise UserError(f"the text {empty[0]!r} is empty; give words to search by")
    if values.image and values.rerank:
        raise UserError(f"--rerank={values.rerank} is for texts; the matching head compares no two images")
    if not image_files(values.images):
        raise UserError(f"--images={values.images} holds no image files")
    commands.check_writable(values.index or values.images / NAME, flag="index")
    if values.page:
        commands.check_writable(values.page, flag="page")


def run(argv: Sequence[str]) -> int:
    return commands.run(name="search", doc=__doc__, define_flags=define_flags, main=main, argv=argv, arguments=True)
