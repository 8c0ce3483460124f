"""A trained model for Pillow images and strings."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int32, PyTree, UInt8
from ml_collections import ConfigDict
from PIL import Image

from mvlm_jax import config as config_lib
from mvlm_jax.data.images import UndecodableImage, evaluate_transform, upright_rgb
from mvlm_jax.data.text import SPECIAL, Tokenizer
from mvlm_jax.errors import UserError
from mvlm_jax.evaluation.batching import index_batches, padded, place
from mvlm_jax.files import user_path
from mvlm_jax.interop.exporting import CONFIG, TOKENIZER, WEIGHTS
from mvlm_jax.interop.parameters import read_parameters
from mvlm_jax.interop.vocabulary import library_tokenizer
from mvlm_jax.models.maskvlm import MaskVLM
from mvlm_jax.tasks.model import maskvlm


def load(folder: str | Path, *, batch_size: int) -> "Inference":
    """As `mvlm_jax.load`."""
    folder = user_path(folder)
    try:
        config = config_lib.from_json((folder / CONFIG).read_bytes(), source=folder / CONFIG)
    except OSError as error:
        raise UserError(f"{folder} has no {CONFIG}; give a folder that mvlm weights export wrote") from error
    if config.task not in ("pretrain", "retrieval"):
        raise UserError(f"{folder} is of config.task={config.task}; load takes a model of pretrain or retrieval")
    if batch_size < 1:
        raise UserError(f"batch_size={batch_size} must be at least 1")
    # What was fastest where it was trained may not exist here.
    config.model.attention = config.model.layer_loop = "auto"
    tokenizer = Tokenizer.load(folder / TOKENIZER, kind=config.text_encoder.kind)
    params = read_parameters(folder / WEIGHTS, config=config)
    return Inference(config=config, tokenizer=tokenizer, params=jax.device_put(params), batch_size=batch_size)


@dataclasses.dataclass(frozen=True)
class Inference:
    """A model with its tokenizer. Batches are filled up to one size, so that each method compiles once."""

    config: ConfigDict
    tokenizer: Tokenizer
    params: PyTree
    batch_size: int

    @cached_property
    def model(self) -> MaskVLM:
        return maskvlm(self.config, pad_id=self.tokenizer.ids.pad)

    def encode_image(self, images: Sequence[Image.Image]) -> Float[np.ndarray, "B E"]:
        """Embeddings of unit norm, comparable with those of texts."""
        return self._batched(_embed_images, self._pixels(images))

    def encode_text(self, texts: Sequence[str]) -> Float[np.ndarray, "B E"]:
        """Embeddings of unit norm, comparable with those of images; longer texts are cut as captions are."""
        return self._batched(_embed_texts, self._tokens(texts))

    def similarity(self, images: Sequence[Image.Image], texts: Sequence[str]) -> Float[np.ndarray, "I T"]:
        """Cosine of every image with every text."""
        return self.encode_image(images) @ self.encode_text(texts).T

    def match(self, images: Sequence[Image.Image], texts: Sequence[str]) -> Float[np.ndarray, " B"]:
        """Probability that the first text describes the first image, the second the second, …

        Raises:
          UserError: not as many texts as images.
        """
        pixels, tokens = self._pixels(images), self._tokens(texts)
        if len(pixels) != len(tokens):
            raise UserError(f"match got {len(pixels)} images and {len(tokens)} texts; it needs one text for each image")
        return self._batched(_match, pixels, tokens)

    def fill_mask(self, text: str, image: Image.Image | None = None, *, top: int = 5) -> list[list[tuple[str, float]]]:
        """For each mask in `text` the `top` likeliest tokens with their probabilities.

        A mask is written <mask> (RoBERTa) or [MASK] (BERT), and stands for one token.

        Raises:
          UserError: no mask in what is left of `text` after it is cut to the longest caption.
        """
        tokens = self._masked_tokens(text)
        slots = np.flatnonzero(tokens[0] == self.tokenizer.ids.mask)
        if not len(slots):
            raise UserError(f"{text!r} holds no {self._mask} among its first {tokens.shape[1] - 2} tokens; put one in")
        pixels = None if image is None else self._pixels([image])
        everywhere = _fill_mask(self.model, self.params, pixels, tokens, self.tokenizer.vocab_size)
        probabilities = np.asarray(everywhere)[0, slots]
        best = np.argsort(-probabilities, axis=-1)[:, :top]
        return [
            [(self._spelled(token), float(row[token])) for token in tokens_of.tolist()]
            for row, tokens_of in zip(probabilities, best)
        ]

    def reconstruct(self, image: Image.Image, text: str, patch_mask: Bool[np.ndarray, "rows columns"]) -> Image.Image:
        """The image at the model's size, its patches where `patch_mask` is true painted from the rest and the text.

        Raises:
          UserError: `patch_mask` is not of the model's grid.
        """
        side = self.config.image.size // self.config.image_encoder.patch
        patch_mask = np.asarray(patch_mask, bool)
        if patch_mask.shape != (side, side):
            raise UserError(f"patch_mask has the shape {patch_mask.shape}; the image has {side} rows of {side} patches")
        pixels = self._pixels([image])
        painted = _reconstruct(self.model, self.params, pixels, self._tokens([text]), patch_mask.reshape(1, -1))
        return Image.fromarray(np.asarray(painted)[0])

    def _batched(self, compute: Callable[..., jax.Array], *inputs: np.ndarray) -> np.ndarray:
        outputs = []
        for indices in index_batches(len(inputs[0]), self.batch_size):
            batch = tuple(padded(rows[indices], self.batch_size) for rows in inputs)
            computed = compute(self.model, self.params, *place(batch, params=self.params))
            outputs.append(np.asarray(computed)[: len(indices)])
        return np.concatenate(outputs)

    def _pixels(self, images: Sequence[Image.Image]) -> UInt8[np.ndarray, "B H W 3"]:
        if isinstance(images, Image.Image) or not all(isinstance(image, Image.Image) for image in images):
            raise UserError("images must be a list of Pillow images; open files with PIL.Image.open")
        if not images:
            raise UserError("images is empty; give at least one")
        try:
            upright = [upright_rgb(image) for image in images]
        except UndecodableImage as error:  # Pillow reads the pixels of a file only here
            raise UserError(f"an image cannot be used: {error}") from error
        return np.stack([evaluate_transform(image, size=self.config.image.size) for image in upright])

    def _tokens(self, texts: Sequence[str]) -> Int32[np.ndarray, "B L"]:
        if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
            raise UserError("texts must be a list of strings; put a single one in brackets")
        if not texts:
            raise UserError("texts is empty; give at least one")
        return self.tokenizer.encode(texts, max_length=self.config.text.max_length)

    def _masked_tokens(self, text: str) -> Int32[np.ndarray, "1 L"]:
        # Lone surrogates cannot be passed on to the library.
        pieces = text.encode("utf-8", "replace").decode("utf-8").strip().split(self._mask)
        if self.config.text_encoder.kind == "roberta":
            # A token of byte-level BPE brings the space before it along, and so does the mask in its place.
            pieces = [piece.rstrip() for piece in pieces[:-1]] + pieces[-1:]
        ids: list[int] = []
        for index, piece in enumerate(pieces):
            ids += [self.tokenizer.ids.mask] * (index > 0)
            ids += self._library.encode(piece, add_special_tokens=False).ids
        length, special = self.config.text.max_length, self.tokenizer.ids
        row = [special.start, *ids[: length - 2], special.end]
        return np.array([row + [special.pad] * (length - len(row))], np.int32)

    def _spelled(self, token: int) -> str:
        return self._library.decode([token], skip_special_tokens=False).strip()

    @cached_property
    def _library(self) -> Any:
        return library_tokenizer(self.tokenizer)

    @cached_property
    def _mask(self) -> str:
        return SPECIAL[self.config.text_encoder.kind][-1]


def _encoded_image(run, pixels, patch_mask=None):
    patches = run(pixels, method="patches")
    hidden = jnp.zeros(patches.shape[:2], bool) if patch_mask is None else patch_mask
    return run(patches, hidden[:, None], method="encode_image")[:, 0]


def _encoded_text(run, tokens):
    return run(tokens, method="encode_text"), run(tokens, method="text_mask")


@functools.partial(jax.jit, static_argnums=0)
def _embed_images(model, params, pixels):
    run = functools.partial(model.apply, {"params": params})
    return run(_encoded_image(run, pixels), method="project_image")


@functools.partial(jax.jit, static_argnums=0)
def _embed_texts(model, params, tokens):
    run = functools.partial(model.apply, {"params": params})
    return run(_encoded_text(run, tokens)[0], method="project_text")


@functools.partial(jax.jit, static_argnums=0)
def _match(model, params, pixels, tokens):
    run = functools.partial(model.apply, {"params": params})
    v, (w, text_mask) = _encoded_image(run, pixels), _encoded_text(run, tokens)
    first = slice(0, 1)
    fused_image = run(v, w, text_mask, first, method="fuse_image")[:, 0]
    fused_text = run(w, text_mask, v, first, method="fuse_text")[:, 0]
    return jax.nn.softmax(run(fused_image, fused_text, method="match"))[:, 1]


@functools.partial(jax.jit, static_argnums=(0, 4))
def _fill_mask(model, params, pixels, tokens, vocab_size):
    run = functools.partial(model.apply, {"params": params})
    v = None if pixels is None else _encoded_image(run, pixels)
    w, text_mask = _encoded_text(run, tokens)
    fused = run(w, text_mask, v, method="fuse_text")
    # The embedding table may have more rows than the tokenizer has tokens.
    return jax.nn.softmax(run(fused, method="classify_tokens")[..., :vocab_size])


@functools.partial(jax.jit, static_argnums=0)
def _reconstruct(model, params, pixels, tokens, patch_mask):
    run = functools.partial(model.apply, {"params": params})
    w, text_mask = _encoded_text(run, tokens)
    v = _encoded_image(run, pixels, patch_mask)
    fused = run(v, w, text_mask, method="fuse_image")
    slots = jnp.broadcast_to(jnp.arange(patch_mask.shape[1]), patch_mask.shape)
    painted = run(fused, w, text_mask, slots, method="decode_image")
    patches = jnp.where(patch_mask[:, :, None], painted, run(pixels, method="patches"))
    side, patch = model.image_size // model.patch, model.patch
    grid = patches.reshape(-1, side, side, patch, patch, 3).transpose(0, 1, 3, 2, 4, 5)
    colours = grid.reshape(pixels.shape) * jnp.asarray(model.std) + jnp.asarray(model.mean)
    return jnp.round(jnp.clip(colours, 0, 1) * 255).astype(jnp.uint8)
