"""Zero-shot classification: the class whose name, put into prompts, is nearest to the image (Radford et al., 2021)."""

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Int32, PyTree, UInt8

from mvlm_jax.data.formats.image_folder import open_image_folder
from mvlm_jax.data.formats.listed import read_image
from mvlm_jax.data.images import ImageSpec, UnusableImage
from mvlm_jax.data.processes import available_cpus
from mvlm_jax.data.skipped import left_out
from mvlm_jax.data.text import Tokenizer
from mvlm_jax.errors import UserError
from mvlm_jax.evaluation.batching import compute, fetch, index_batches, padded, place, shared_batch_size
from mvlm_jax.evaluation.ranking import recall, top, wrong_before
from mvlm_jax.evaluation.retrieval import encode_texts
from mvlm_jax.models.maskvlm import MaskVLM

TOP = 5  # of the classes, where there are more
TEMPLATES = ("a photo of a {}.", "a picture of a {}.", "an image of the {}.", "there is a {}.", "{}")


@dataclasses.dataclass(frozen=True)
class Prompts:
    """How a class becomes texts."""

    tokenizer: Tokenizer
    max_length: int
    templates: Sequence[str] = TEMPLATES

    def encode(self, classes: Sequence[str]) -> Int32[np.ndarray, "prompts L"]:
        """All texts of the first class, then all of the second, …"""
        texts = [template.replace("{}", name) for name in classes for template in self.templates]
        return self.tokenizer.encode(texts, max_length=self.max_length)


def classify_folder(
    model: MaskVLM,
    params: PyTree,
    directory: Path,
    prompts: Prompts,
    *,
    names: Mapping[str, str] | None = None,
    spec: ImageSpec,
    batch_size: int,
) -> dict[str, Any]:
    """`top1` in percent of the images of a folder, which holds a folder for each class; `top5` of more than 5 classes.

    Beside them `per_class`, the same for the images of each class; `confusion`, how many images of each class (a row)
    were taken for each other one (a column), both in the order of `class_names`; and `predictions`, an image each. A
    wrong class with the same score counts as ranked before the right one. Images that cannot be decoded are left out
    and counted.

    Args:
      names: of the class in each folder; None: the folder's own name.

    Raises:
      UserError: not such a folder, other names than it has folders, or none of its images can be used.
    """
    classes, images = open_image_folder(directory, names=names)
    batch_size = shared_batch_size(batch_size, params=params)
    prototypes = class_embeddings(model, params, classes, prompts, batch_size=batch_size)
    reasons: Counter[str] = Counter()
    ranks, taken, used = [np.empty(0, np.int64)], [np.empty(0, np.int64)], []

    def read(path: Path) -> UInt8[np.ndarray, "S S 3"] | str:
        try:
            return spec.unaugmented(read_image(path))
        except UnusableImage as error:
            return error.reason

    with ThreadPoolExecutor(available_cpus()) as pool:
        for indices in index_batches(len(images), batch_size):
            read_batch = list(pool.map(read, (images[index][0] for index in indices)))
            reasons.update(pixels for pixels in read_batch if isinstance(pixels, str))
            usable = [index for pixels, index in zip(read_batch, indices) if not isinstance(pixels, str)]
            if not usable:
                continue
            used += [images[index] for index in usable]
            pixels = np.stack([pixels for pixels in read_batch if not isinstance(pixels, str)])
            labels = np.array([images[index][1] for index in usable])
            batch = place(padded(pixels, batch_size), params=params)
            z = fetch(compute(model, params, batch, method=MaskVLM.embed_image))[: len(labels)]
            own = labels[:, None] == np.arange(len(classes))
            scores = z.astype(np.float64) @ prototypes.T
            ranks.append(wrong_before(scores, own))
            taken.append(top(scores, own, k=1)[:, 0])
    if not used:
        raise UserError(f"none of the {len(images)} images in {str(directory)!r} can be used ({dict(reasons)})")
    return {
        **_measured(np.concatenate(ranks), np.concatenate(taken), used, classes, directory=directory),
        "templates": list(prompts.templates),
    } | left_out(reasons)


def _measured(
    ranks: Int[np.ndarray, " I"],
    taken: Int[np.ndarray, " I"],
    images: Sequence[tuple[Path, int]],
    classes: Sequence[str],
    *,
    directory: Path,
) -> dict[str, Any]:
    """
    Args:
      ranks: wrong classes that stand before the right one.
      taken: the class that each image was taken for.
      images: each with its class.
    """
    levels = {"top1": 1, **({"top5": TOP} if len(classes) > TOP else {})}
    labels = np.array([label for _, label in images])
    confusion = np.zeros((len(classes), len(classes)), np.int64)
    np.add.at(confusion, (labels, taken), 1)
    per_class = {}
    for label, name in enumerate(classes):
        of_class = ranks[labels == label]
        measured = {level: recall(of_class, at=at) for level, at in levels.items()} if len(of_class) else {}
        per_class[name] = {"images": len(of_class), **measured}
    return {
        **{level: recall(ranks, at=at) for level, at in levels.items()},
        "images": len(ranks),
        "classes": len(classes),
        "class_names": list(classes),
        "per_class": per_class,
        "confusion": confusion.tolist(),
        "predictions": [
            {
                "image": str(path.relative_to(directory)),
                "class": classes[label],
                "predicted": classes[guess],
                "rank": int(rank) + 1,
            }
            for (path, label), guess, rank in zip(images, taken, ranks, strict=True)
        ],
    }


def class_embeddings(
    model: MaskVLM, params: PyTree, classes: Sequence[str], prompts: Prompts, *, batch_size: int
) -> Float[np.ndarray, "classes E"]:
    """The mean of a class's prompts, each of unit norm, and then of unit norm itself."""
    z, _ = encode_texts(model, params, prompts.encode(classes), batch_size=batch_size, host_bytes=0)
    mean = z.astype(np.float64).reshape(len(classes), len(prompts.templates), -1).mean(axis=1)
    return mean / np.linalg.norm(mean, axis=1, keepdims=True)
