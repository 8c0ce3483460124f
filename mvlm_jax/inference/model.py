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
from mvlm_jax.evaluation.batching import compute, index_batches, padded, place
from mvlm_jax.inference.heat import WordHeat
from mvlm_jax.inference.words import by_word, words_of
from mvlm_jax.interop import hub
from mvlm_jax.interop.exporting import CONFIG, TOKENIZER, WEIGHTS
from mvlm_jax.interop.families import text_family
from mvlm_jax.interop.parameters import flat, nested, read_parameters
from mvlm_jax.interop.vocabulary import library_tokenizer
from mvlm_jax.models.heat_maps import text_heat_maps
from mvlm_jax.models.maskvlm import MaskVLM
from mvlm_jax.tasks.base import BaseTask
from mvlm_jax.tasks.labelled import LabelledTask
from mvlm_jax.tasks.registry import task_type, validate
from mvlm_jax.training.workdir import CHECKPOINTS

NOT_IMAGES = "images must be a list of Pillow images; open files with PIL.Image.open"


def load(folder: str | Path, *, batch_size: int) -> "Inference":
    """As `mvlm_jax.load`."""
    folder = hub.local_path(folder)
    if (folder / CHECKPOINTS).is_dir():
        raise UserError(f"{folder} is a run; export it with mvlm weights export --workdir={folder} --output=FOLDER")
    try:
        config = config_lib.from_json((folder / CONFIG).read_bytes(), source=folder / CONFIG)
    except OSError as error:
        raise UserError(f"{folder} has no {CONFIG}; give a folder that mvlm weights export wrote") from error
    try:
        validate(config)
        task = task_type(config)
    except UserError as error:
        raise UserError(f"{folder} cannot be loaded: {error}") from error
    if batch_size < 1:
        raise UserError(f"batch_size={batch_size} must be at least 1")
    # What was fastest where it was trained may not exist here.
    config.model.attention = config.model.layer_loop = "auto"
    tokenizer = Tokenizer.load(folder / TOKENIZER, kind=text_family(config.text_encoder.kind).tokenizer)
    params = read_parameters(folder / WEIGHTS)
    shapes = {path: leaf.shape for path, leaf in flat(task.parameter_shapes(config)).items()}
    different = sorted(set(shapes) ^ set(params)) or [
        path for path in sorted(shapes) if shapes[path] != params[path].shape
    ]
    if different:
        raise UserError(
            f"{folder / WEIGHTS} does not fit the config.json beside it in {len(different)} parameters, the first is "
            f"{different[0]}; keep the files of one export together"
        )
    opened = task(config=config, tokenizer=tokenizer, **task.read_assets(folder))
    return Inference(task=opened, params=jax.device_put(nested(params)), batch_size=batch_size)


@dataclasses.dataclass(frozen=True)
class Inference:
    """A model with its tokenizer; `task.verbs` names the methods that it has been trained for.

    Batches are filled up to one size, so that each method compiles once.
    """

    task: BaseTask
    params: PyTree
    batch_size: int

    @property
    def config(self) -> ConfigDict:
        return self.task.config

    @property
    def tokenizer(self) -> Tokenizer:
        return self.task.tokenizer

    @property
    def model(self) -> MaskVLM:
        return self.task.model

    def answer(self, images: Sequence[Image.Image], questions: Sequence[str]) -> list[str]:
        """To each question about its image the likeliest answer of the list that the model was trained with.

        Raises:
          UserError: as `predict`, or a model that does not answer questions.
        """
        self.check_verb("answer")
        return [answer.ranked for answer in self.predict(images, questions)]

    def classify_pair(
        self, images: Sequence[Image.Image | Sequence[Image.Image]], texts: Sequence[str]
    ) -> list[dict[str, float]]:
        """The probability of each label for each image, or pair of images where the task has two, with its text.

        Raises:
          UserError: as `predict`, or a model that does not choose labels.
        """
        self.check_verb("classify_pair")
        return self.predict(images, texts)

    def predict(self, images: Sequence[Image.Image | Sequence[Image.Image]], texts: Sequence[str]) -> list[Any]:
        """What the task predicts of each image, or group of images, with its text.

        Raises:
          UserError: not as many texts as images, another number of images in a group than the task takes, or a model
            that is not fine-tuned to predict something of images with a text.
        """
        self.check_verb("predict")
        assert isinstance(self.task, LabelledTask)
        if isinstance(images, Image.Image):
            raise UserError(NOT_IMAGES)
        groups: list[Any] = [image if isinstance(image, list | tuple) else [image] for image in images]
        pixels = self.pixels([image for group in groups for image in group])
        tokens, each = self._tokens(texts), self.task.images
        for index, group in enumerate(groups):
            if len(group) != each:
                raise UserError(
                    f"config.task={self.task.name} takes {each} images a text; images[{index}] holds {len(group)}"
                )
        if len(groups) != len(tokens):
            raise UserError(
                f"predict got {len(groups)} images and {len(tokens)} texts; it needs one text for each image"
            )
        pixels = pixels.reshape(len(tokens), each, *pixels.shape[1:])
        predicted: list[Any] = []
        for indices in index_batches(len(tokens), self.batch_size):
            image, text = (padded(rows[indices], self.batch_size) for rows in (pixels, tokens))
            shown = self.task.shown(place({"image": image, "text": text}, params=self.params))
            predicted += self.task.predict(self.params, shown["image"], shown["text"])[: len(indices)]
        return predicted

    def check_verb(self, verb: str) -> None:
        """
        Raises:
          UserError: a model of this task does not have the method of that name.
        """
        if verb not in self.task.verbs:
            raise UserError(
                f"{verb} is not for a model of config.task={self.task.name}; use {', '.join(self.task.verbs)}"
            )

    def encode_image(self, images: Sequence[Image.Image]) -> Float[np.ndarray, "B E"]:
        """Embeddings of unit norm, comparable with those of texts."""
        self.check_verb("encode_image")
        return self._batched(MaskVLM.embed_image, self.pixels(images))

    def encode_text(self, texts: Sequence[str]) -> Float[np.ndarray, "B E"]:
        """Embeddings of unit norm, comparable with those of images; longer texts are cut as captions are."""
        self.check_verb("encode_text")
        return self._batched(MaskVLM.embed_text, self._tokens(texts))

    def similarity(self, images: Sequence[Image.Image], texts: Sequence[str]) -> Float[np.ndarray, "I T"]:
        """Cosine of every image with every text."""
        self.check_verb("similarity")
        return self.encode_image(images) @ self.encode_text(texts).T

    def match(self, images: Sequence[Image.Image], texts: Sequence[str]) -> Float[np.ndarray, " B"]:
        """Probability that the first text describes the first image, the second the second, …

        Raises:
          UserError: not as many texts as images.
        """
        self.check_verb("match")
        pixels, tokens = self.pixels(images), self._tokens(texts)
        if len(pixels) != len(tokens):
            raise UserError(f"match got {len(pixels)} images and {len(tokens)} texts; it needs one text for each image")
        return self._batched(_match, pixels, tokens)

    def fill_mask(self, text: str, image: Image.Image | None = None, *, top: int = 5) -> list[list[tuple[str, float]]]:
        """For each mask in `text` the `top` likeliest tokens with their probabilities.

        A mask is written <mask> (RoBERTa, MPNet) or [MASK] (BERT, DistilBERT), and stands for one token.

        Raises:
          UserError: no mask in what is left of `text` after it is cut to the longest caption.
        """
        self.check_verb("fill_mask")
        tokens = self._masked_tokens(text)
        slots = np.flatnonzero(tokens[0] == self.tokenizer.ids.mask)
        if not len(slots):
            raise UserError(
                f"{text!r} holds no {self.mask_token} among its first {tokens.shape[1] - 2} tokens; put one in"
            )
        pixels = None if image is None else self.pixels([image])
        everywhere = _fill_mask(self.model, self.params, pixels, tokens, self.tokenizer.vocab_size)
        probabilities = np.asarray(everywhere)[0, slots]
        best = np.argsort(-probabilities, axis=-1)[:, :top]
        return [
            [(self._spelled(token), float(row[token])) for token in tokens_of.tolist()]
            for row, tokens_of in zip(probabilities, best)
        ]

    def reconstruct(
        self, image: Image.Image, text: str | None, patch_mask: Bool[np.ndarray, "rows columns"]
    ) -> Image.Image:
        """The image at the model's size, its patches where `patch_mask` is true painted from the rest and the text.

        Args:
          text: None: from the rest alone.

        Raises:
          UserError: `patch_mask` is not of the model's grid.
        """
        self.check_verb("reconstruct")
        side = self.config.image.size // self.config.image_encoder.patch
        patch_mask = np.asarray(patch_mask, bool)
        if patch_mask.shape != (side, side):
            raise UserError(f"patch_mask has the shape {patch_mask.shape}; the image has {side} rows of {side} patches")
        tokens = None if text is None else self._tokens([text])
        shown = self.pixels([image]), tokens, patch_mask.reshape(1, -1)
        painted = compute(self.model, self.params, *shown, method=_reconstruct)
        return Image.fromarray(np.asarray(painted)[0])

    def attention(self, image: Image.Image, text: str) -> WordHeat:
        """Where in the image each word of the text looks, as far as that makes them match; see `heat_maps`.

        Raises:
          UserError: the text has no words, or the model has one cross layer only, which shows nothing of its words.
        """
        self.check_verb("attention")
        if self.config.cross.layers < 2:
            raise UserError(
                "attention needs a model of at least two cross layers; this one was trained with config.cross.layers=1"
            )
        pixels, tokens = self.pixels([image]), self._tokens([text])
        words = words_of(text, self.tokenizer, max_length=tokens.shape[1])
        if not words:
            raise UserError(f"{text!r} holds no word; give a text that describes the image")
        heat, odds = _heat(self.model, self.params, pixels, tokens)
        return WordHeat(
            words=tuple(word.text for word in words),
            maps=by_word(np.asarray(heat, np.float32)[0], words),
            match=float(jax.nn.sigmoid(odds[0])),
            image=pixels[0],
        )

    def _batched(self, method: Callable[..., jax.Array], *inputs: np.ndarray) -> np.ndarray:
        outputs = []
        for indices in index_batches(len(inputs[0]), self.batch_size):
            batch = tuple(padded(rows[indices], self.batch_size) for rows in inputs)
            computed = compute(self.model, self.params, *place(batch, params=self.params), method=method)
            outputs.append(np.asarray(computed)[: len(indices)])
        return np.concatenate(outputs)

    def pixels(self, images: Any) -> UInt8[np.ndarray, "B H W 3"]:
        """Images as the model is shown them: upright, at its size.

        Raises:
          UserError: they are no list of Pillow images, or one of them cannot be read.
        """
        if isinstance(images, Image.Image) or not all(isinstance(image, Image.Image) for image in images):
            raise UserError(NOT_IMAGES)
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
        pieces = text.encode("utf-8", "replace").decode("utf-8").strip().split(self.mask_token)
        if self.tokenizer.kind == "roberta":
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
    def mask_token(self) -> str:
        """What stands for a hidden token in `fill_mask`."""
        return SPECIAL[self.tokenizer.kind][-1]


_heat = jax.jit(text_heat_maps, static_argnums=0)


def _match(model, pixels, tokens):
    return jax.nn.softmax(model.pair_logits(pixels, tokens))[:, 1]


@functools.partial(jax.jit, static_argnums=(0, 4))
def _fill_mask(model, params, pixels, tokens, vocab_size):
    bound = model.bind({"params": params})
    v = None if pixels is None else bound.encode_whole_image(pixels)
    fused = bound.fuse_text(bound.encode_text(tokens), bound.text_mask(tokens), v)
    # The embedding table may have more rows than the tokenizer has tokens.
    return jax.nn.softmax(bound.classify_tokens(fused)[..., :vocab_size])


def _reconstruct(model, pixels, tokens, patch_mask):
    if tokens is None:
        w, text_mask = None, jnp.ones((len(pixels), 1), bool)  # a mask of nothing, which is not looked at
    else:
        w, text_mask = model.encode_text(tokens), model.text_mask(tokens)
    patches = model.patches(pixels)
    fused = model.fuse_image(model.encode_image(patches, patch_mask[:, None])[:, 0], w, text_mask)
    slots = jnp.broadcast_to(jnp.arange(patch_mask.shape[1]), patch_mask.shape)
    painted = jnp.where(patch_mask[:, :, None], model.decode_image(fused, w, text_mask, slots), patches)
    side, patch = model.image.grid, model.image.patch
    grid = painted.reshape(-1, side, side, patch, patch, 3).transpose(0, 1, 3, 2, 4, 5)
    colours = grid.reshape(pixels.shape) * jnp.asarray(model.image.std) + jnp.asarray(model.image.mean)
    return jnp.round(jnp.clip(colours, 0, 1) * 255).astype(jnp.uint8)
