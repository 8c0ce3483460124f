"""A trained model for images and strings."""

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, overload

import jax
import numpy as np
from jaxtyping import Bool, Float, Int, Int32, PyTree, UInt8
from ml_collections import ConfigDict
from PIL import Image

from mvlm_jax.data.text import Tokenizer
from mvlm_jax.errors import UserError
from mvlm_jax.evaluation.batching import compute, index_batches, padded, place
from mvlm_jax.evaluation.classification import TEMPLATES, Prompts, class_embeddings
from mvlm_jax.inference import programs
from mvlm_jax.inference.blanks import Blanks
from mvlm_jax.inference.boxes import patches_in
from mvlm_jax.inference.heat import WordHeat
from mvlm_jax.inference.images import ImageReader, Picture, Pictures, described
from mvlm_jax.inference.ranked import Hit, nearest, reordered
from mvlm_jax.inference.texts import checked_labels, checked_number, checked_templates, checked_text, checked_texts
from mvlm_jax.inference.words import Word, by_word, words_of
from mvlm_jax.interop.parameters import flat
from mvlm_jax.models.maskvlm import MaskVLM
from mvlm_jax.tasks.base import BaseTask
from mvlm_jax.tasks.labelled import LabelledTask

Group = Picture | Sequence[Picture]  # the images that one text speaks of
Filled = list[list[tuple[str, float]]]  # of each mask the likeliest tokens with their probabilities
Masks = Bool[np.ndarray, "rows columns"] | Bool[np.ndarray, "B rows columns"]


@dataclasses.dataclass(frozen=True, repr=False)
class Inference:
    """A model with its tokenizer; `task.verbs` names the methods that it has been trained for.

    Images are Pillow images, paths of files, or arrays of uint8 [height, width, 3]; where a method takes any number of
    them, a folder stands for the image files in it. Batches are filled up to one size, so that each method compiles
    once; a single image or text given by itself is computed alone. Whatever is given wrongly raises a `UserError`,
    which is a `ValueError`.
    """

    task: BaseTask
    params: PyTree
    batch_size: int

    def __repr__(self) -> str:
        config, leaves = self.config, jax.tree.leaves(self.params)
        where = ", ".join(sorted({str(device) for leaf in leaves for device in leaf.devices()}))
        count = sum(leaf.size for leaf in leaves)
        size, text = config.image.size, config.text
        return "\n".join(
            [
                f"mvlm_jax.Inference of config.task={self.task.name}: {count:,} parameters on {where}, {config.dtype}",
                f"  reads images of {size} x {size} pixels ({config.image_encoder.kind}) and texts of up to "
                f"{text.max_length} tokens ({config.text_encoder.kind}), {self.batch_size} at once",
                f"  {', '.join(self.task.verbs)}",
            ]
        )

    @property
    def config(self) -> ConfigDict:
        return self.task.config

    @property
    def tokenizer(self) -> Tokenizer:
        return self.task.tokenizer

    @property
    def model(self) -> MaskVLM:
        return self.task.model

    @cached_property
    def reader(self) -> ImageReader:
        """What reads images for this model."""
        return ImageReader(self.task.image_spec)

    @cached_property
    def fingerprint(self) -> str:
        """Equal for models that embed an image alike, but for rounding."""
        digest = hashlib.blake2b(digest_size=16)
        shown = {name: self.config[name].to_dict() for name in ("image", "image_encoder", "cross")}
        digest.update(json.dumps(shown, sort_keys=True).encode())
        for path, value in sorted(flat(self.params).items()):
            if path.startswith(("image_encoder", "image_to_cross", "image_projection")):
                digest.update(path.encode())
                digest.update(np.ascontiguousarray(value).tobytes())
        return digest.hexdigest()

    def warm_up(self, *verbs: str) -> dict[str, float]:
        """Compiles methods, all that the model has by default, and returns the seconds that each took.

        Raises:
          UserError: the model has no such method.
        """
        for verb in verbs:
            self.check_verb(verb)
        image, text, seconds = Image.new("RGB", (32, 32)), "a photo", {}
        grid = np.zeros([self._side] * 2, bool)
        group: Any = [[image] * self.task.images]
        calls: dict[str, Callable[[], Any]] = {
            "encode_image": lambda: self.encode_image([image]),
            "encode_text": lambda: self.encode_text([text]),
            "similarity": lambda: self.similarity([image], [text]),
            "match": lambda: self.match([image], [text]),
            "rank": lambda: self.rank([image], [text]),
            "classify": lambda: self.classify([image], ["dog", "cat"]),
            "fill_mask": lambda: self.fill_mask(f"a {self.mask_token}", image),
            "reconstruct": lambda: self.reconstruct(image, text, grid),
            "attention": lambda: self.attention(image, text, of="word" if self.config.cross.layers < 2 else "match"),
            "answer": lambda: self.answer(group, [text]),
            "classify_pair": lambda: self.classify_pair(group, [text]),
            "predict": lambda: self.predict(group, [text]),
        }
        for verb in verbs or self.task.verbs:
            start = time.perf_counter()
            calls[verb]()
            seconds[verb] = time.perf_counter() - start
        return seconds

    def check_verb(self, verb: str) -> None:
        """
        Raises:
          UserError: a model of this task does not have the method of that name.
        """
        if verb not in self.task.verbs:
            raise UserError(
                f"{verb} is not for a model of config.task={self.task.name}; use {', '.join(self.task.verbs)}"
            )

    def answer(self, images: Sequence[Group], questions: Sequence[str]) -> list[str]:
        """To each question about its image the likeliest answer of the list that the model was trained with.

        Raises:
          UserError: as `predict`, or a model that does not answer questions.
        """
        self.check_verb("answer")
        return [answer.ranked for answer in self._predicted(images, questions, verb="answer")]

    def classify_pair(self, images: Sequence[Group], texts: Sequence[str]) -> list[dict[str, float]]:
        """The probability of each label for each image, or pair of images where the task has two, with its text.

        Raises:
          UserError: as `predict`, or a model that does not choose labels.
        """
        self.check_verb("classify_pair")
        return self._predicted(images, texts, verb="classify_pair")

    def predict(self, images: Sequence[Group], texts: Sequence[str]) -> list[Any]:
        """What the task predicts of each image, or group of images, with its text.

        Raises:
          UserError: not as many texts as images, another number of images in a group than the task takes, or a model
            that is not fine-tuned to predict something of images with a text.
        """
        self.check_verb("predict")
        return self._predicted(images, texts, verb="predict")

    def encode_image(self, images: Pictures) -> Float[np.ndarray, "B E"]:
        """Embeddings of unit norm, comparable with those of texts.

        Any number of images: they may come from a generator, and one batch of them is in memory.
        """
        self.check_verb("encode_image")
        return np.concatenate(list(self.encode_image_batches(images)))

    def encode_image_batches(self, images: Pictures) -> Iterable[Float[np.ndarray, "b E"]]:
        """As `encode_image`, a batch at a time: the images of the next one are read while one is computed."""
        self.check_verb("encode_image")
        waiting = None
        for pixels in self.reader.batches(images, self.batch_size):
            batch = place(padded(pixels, self.batch_size), params=self.params)
            computed = compute(self.model, self.params, batch, method=MaskVLM.embed_image)
            if waiting is not None:
                yield np.asarray(waiting[0])[: waiting[1]]
            waiting = computed, len(pixels)
        assert waiting is not None
        yield np.asarray(waiting[0])[: waiting[1]]

    def encode_text(self, texts: Sequence[str]) -> Float[np.ndarray, "B E"]:
        """Embeddings of unit norm, comparable with those of images; longer texts are cut as captions are."""
        self.check_verb("encode_text")
        return self._batched(MaskVLM.embed_text, self._tokens(texts))

    def similarity(self, images: Pictures, texts: Sequence[str]) -> Float[np.ndarray, "I T"]:
        """Cosine of every image with every text."""
        self.check_verb("similarity")
        z_text = self.encode_text(texts)
        return self.encode_image(images) @ z_text.T

    def match(self, images: Pictures, texts: Sequence[str]) -> Float[np.ndarray, " B"]:
        """Probability that the first text describes the first image, the second the second, …

        Raises:
          UserError: not as many texts as images.
        """
        self.check_verb("match")
        listed, tokens = self.reader.listed(images), self._tokens(texts)
        self._check_as_many(listed, tokens, verb="match")
        each = np.arange(len(tokens))
        return 1 / (1 + np.exp(-self._log_odds(listed, tokens, each, each)))

    def rank(
        self, images: Pictures, texts: Sequence[str], *, top: int = 10, rerank: int | None = None
    ) -> list[list[Hit]]:
        """For each text the images that it describes best, best first.

        They are found by similarity; the matching head then decides the order of the first of them, as it does in
        evaluation (`config.eval.rerank_by`).

        Args:
          top: images for each text, at most.
          rerank: how many images the matching head judges for each text; None: `config.eval.rerank`, or none where the
            model was trained without matching.
        """
        self.check_verb("rank")
        top = checked_number(top, name="top", least=1)
        rerank = self.reranked_by_default if rerank is None else checked_number(rerank, name="rerank", least=0)
        tokens, listed = self._tokens(texts), self.reader.listed(images)
        similarity = self.similarity(listed, texts).T.astype(np.float64)
        candidates = [nearest(row, k=max(top, rerank)) for row in similarity]
        return [hits[:top] for hits in self.judged(listed, tokens, similarity, candidates, rerank=rerank)]

    @property
    def reranked_by_default(self) -> int:
        """Images for each text that the matching head judges where the caller does not say."""
        return self.config.eval.rerank if self.config.loss.itm else 0

    def judged(
        self,
        images: Sequence[Any],
        tokens: Int[np.ndarray, "T L"],
        similarity: Float[np.ndarray, "T I"],
        candidates: Sequence[Int[np.ndarray, " k"]],
        *,
        rerank: int,
    ) -> list[list[Hit]]:
        """The candidates of each text, the first of them in the order of the matching head; see `rank`."""
        pairs = [(image, text) for text, row in enumerate(candidates) for image in row[:rerank]]
        order = sorted(range(len(pairs)), key=lambda place: pairs[place])  # each image is read once
        log_odds = np.zeros(len(pairs), np.float32)
        if pairs:
            image, text = np.array(pairs)[order].T
            log_odds[order] = self._log_odds(images, tokens, image, text)
        added = self.config.eval.rerank_by == "itm+itc"
        temperature = float(compute(self.model, self.params, method=MaskVLM.temperature)) if added else None
        ends = np.cumsum([min(rerank, len(row)) for row in candidates])
        return [
            reordered(row, cosines, odds, temperature=temperature)
            for row, cosines, odds in zip(candidates, similarity, np.split(log_odds, ends[:-1]), strict=True)
        ]

    def classify(
        self, images: Pictures, labels: Sequence[str], *, templates: Sequence[str] = TEMPLATES
    ) -> list[dict[str, float]]:
        """The probability of each label for each image, without training (Radford et al., 2021).

        A label is the mean of its prompts' embeddings; the probabilities are the softmax of the cosines by the model's
        temperature. Any number of images, as `encode_image`.

        Args:
          templates: prompts, each with {} in the place of the label.
        """
        self.check_verb("classify")
        prompts = Prompts(self.tokenizer, self.config.text.max_length, checked_templates(templates))
        labels = checked_labels(labels)
        classes = class_embeddings(self.model, self.params, labels, prompts, batch_size=self.batch_size)
        temperature = float(compute(self.model, self.params, method=MaskVLM.temperature))
        scores = self.encode_image(images).astype(np.float64) @ classes.T / temperature
        odds = np.exp(scores - scores.max(axis=1, keepdims=True))
        return [dict(zip(labels, row.tolist())) for row in odds / odds.sum(axis=1, keepdims=True)]

    @overload
    def fill_mask(self, text: str, image: Picture | None = None, *, top: int = 5) -> Filled: ...  # type: ignore[overload-overlap]

    @overload
    def fill_mask(self, text: Sequence[str], image: Pictures | None = None, *, top: int = 5) -> list[Filled]: ...

    def fill_mask(self, text: Any, image: Any = None, *, top: int = 5) -> Any:
        """For each mask in the text the `top` likeliest tokens with their probabilities; of a list, for each text.

        A mask is written `<mask>` (RoBERTa, MPNet) or `[MASK]` (BERT, DistilBERT), and stands for one token.

        Args:
          image: to the text, or as many as texts; None: the words are guessed from the text alone.

        Raises:
          UserError: no mask in what is left of a text after it is cut to the longest caption.
        """
        self.check_verb("fill_mask")
        checked_number(top, name="top", least=1)
        if not isinstance(text, list | tuple):
            checked_text(text)
            pixels = None if image is None else self.reader.one(image)[None]
            return self._filled([text], lambda _: pixels, top=top)[0]
        texts = checked_texts(text, name="text")
        if image is None:
            return self._filled(texts, lambda _: None, top=top)
        listed = self.reader.listed(image, name="image")
        self._check_as_many(listed, texts, verb="fill_mask")
        return self._filled(texts, lambda indices: self._read(listed, indices, name="image"), top=top)

    @overload
    def reconstruct(self, image: Picture, text: str | None, patch_mask: Masks) -> Image.Image: ...  # type: ignore[overload-overlap]

    @overload
    def reconstruct(self, image: Pictures, text: Sequence[str] | None, patch_mask: Masks) -> list[Image.Image]: ...

    def reconstruct(self, image: Any, text: Any, patch_mask: Any) -> Any:
        """The image at the model's size, its patches where `patch_mask` is true painted from the rest and the text.

        Args:
          image: one, or a list of them.
          text: as many as images; None: from the rest alone.
          patch_mask: for all images, or one for each; `patch_mask` of a model makes one of a box.

        Raises:
          UserError: `patch_mask` is not of the model's grid.
        """
        self.check_verb("reconstruct")
        single = isinstance(image, Image.Image | str | Path) or getattr(image, "ndim", 0) == 3
        if single:
            texts: Sequence[str] | None = None if text is None else [checked_text(text)]
            pixels = self.reader.one(image)[None]
            count, read = 1, lambda _: pixels
        else:
            listed = self.reader.listed(image, name="image")
            texts = None if text is None else checked_texts(text, name="text")
            if texts is not None:
                self._check_as_many(listed, texts, verb="reconstruct")
            count, read = len(listed), lambda indices: self._read(listed, indices, name="image")
        masks = self._patch_masks(patch_mask, count=count, single=single)
        tokens = None if texts is None else self._tokens(texts)
        size, painted = 1 if count == 1 else self.batch_size, []
        for indices in index_batches(count, size):
            shown = (read(indices), None if tokens is None else tokens[indices], masks[indices])
            batch = jax.tree.map(lambda rows: padded(rows, size), shown)
            result = compute(self.model, self.params, *place(batch, params=self.params), method=programs.reconstruct)
            painted += [Image.fromarray(each) for each in np.asarray(result)[: len(indices)]]
        return painted[0] if single else painted

    def patch_mask(self, box: Sequence[int | float]) -> Bool[np.ndarray, "rows columns"]:
        """The patches that a box touches, to be painted by `reconstruct`; `|` joins several boxes.

        Args:
          box: left, top, right and bottom, as parts of the width and the height of an image: (0.5, 0, 1, 0.5) is its
            quarter at the top right.

        Raises:
          UserError: it is no box inside the image.
        """
        self.check_verb("reconstruct")
        return patches_in(box, side=self._side)

    def attention(self, image: Picture, text: str, *, of: str = "match") -> WordHeat:
        """Where in the image each word of the text looks; see `models.heat_maps`.

        Args:
          of: what the heat raises. match: the log-odds that image and text match, as ALBEF shows it. word: the
            log-probability that the model gives to the word where it is hidden, which takes a pass for each word.

        Raises:
          UserError: the text has no words; or by match, the model has one cross layer only, of which matching reads no
            word.
        """
        self.check_verb("attention")
        if not isinstance(of, str) or of not in ("match", "word"):
            raise UserError(f"of={described(of)} must be match or word")
        pixels, tokens = self.reader.one(image)[None], self._tokens([checked_text(text)])
        words = words_of(text, self.tokenizer, max_length=tokens.shape[1])
        if not words:
            raise UserError(f"{text!r:.60} holds no word; give a text that describes the image")
        if of == "match" and self.config.cross.layers < 2:
            raise UserError(
                "attention needs of='word' for this model, which was trained with config.cross.layers=1: "
                "matching reads no word of the last layer"
            )
        if of == "match":
            heat, odds = programs.match_heat_maps(self.model, self.params, *place((pixels, tokens), params=self.params))
            maps = by_word(np.asarray(heat, np.float32)[0], words)
        else:
            odds = self._log_odds([image], tokens, np.zeros(1, int), np.zeros(1, int))
            maps = self._heat_of_words(pixels[0], tokens[0], words)
        match = float(jax.nn.sigmoid(odds[0]))
        return WordHeat(words=tuple(word.text for word in words), maps=maps, match=match, image=pixels[0])

    def _heat_of_words(
        self, pixels: UInt8[np.ndarray, "H W 3"], tokens: Int[np.ndarray, " L"], words: list[Word]
    ) -> Float[np.ndarray, "words rows columns"]:
        most = 1 << (max(len(word.tokens) for word in words) - 1).bit_length()
        places = np.stack([np.resize(word.tokens, most) for word in words]).astype(np.int32)
        hidden = np.tile(tokens, (len(words), 1))
        np.put_along_axis(hidden, places, self.tokenizer.ids.mask, axis=1)
        maps = []
        # As many as a text has tokens at once, so that one program serves all texts.
        size = min(self.batch_size, len(tokens))
        for indices in index_batches(len(words), size):
            batch = tuple(padded(rows[indices], size) for rows in (hidden, places, tokens[places]))
            shown = place((pixels, *batch), params=self.params)
            heat, _ = programs.word_heat_maps(self.model, self.params, *shown)
            maps.append(np.asarray(heat, np.float32)[: len(indices)])
        return np.concatenate(maps)

    def pixels(self, images: Pictures) -> UInt8[np.ndarray, "B H W 3"]:
        """Images as the model is shown them: upright, at its size.

        Raises:
          UserError: one of them is no image, or cannot be read.
        """
        return np.concatenate(list(self.reader.batches(images, self.batch_size)))

    @property
    def mask_token(self) -> str:
        """What stands for a hidden token in `fill_mask`."""
        return self._blanks.mask_token

    @property
    def _side(self) -> int:
        """Patches in a row of an image, and rows of them."""
        return self.config.image.size // self.config.image_encoder.patch

    @cached_property
    def _blanks(self) -> Blanks:
        return Blanks(self.tokenizer, max_length=self.config.text.max_length)

    def _tokens(self, texts: Any) -> Int32[np.ndarray, "B L"]:
        return self.tokenizer.encode(checked_texts(texts), max_length=self.config.text.max_length)

    def _read(
        self, images: Sequence[Any], indices: Int[np.ndarray, " b"], *, name: str
    ) -> UInt8[np.ndarray, "b H W 3"]:
        return np.stack([self.reader.one(images[index], name=f"{name}[{index}]") for index in indices.tolist()])

    def _check_as_many(self, images: Sequence[Any], texts: Any, *, verb: str) -> None:
        if len(images) != len(texts):
            raise UserError(f"{verb} got {len(images)} images and {len(texts)} texts; it needs one text for each image")

    def _batched(self, method: Callable[..., jax.Array], *inputs: np.ndarray) -> np.ndarray:
        outputs = []
        for indices in index_batches(len(inputs[0]), self.batch_size):
            batch = tuple(padded(rows[indices], self.batch_size) for rows in inputs)
            computed = compute(self.model, self.params, *place(batch, params=self.params), method=method)
            outputs.append(np.asarray(computed)[: len(indices)])
        return np.concatenate(outputs)

    def _log_odds(
        self,
        images: Sequence[Any],
        tokens: Int[np.ndarray, "T L"],
        image: Int[np.ndarray, " pairs"],
        text: Int[np.ndarray, " pairs"],
    ) -> Float[np.ndarray, " pairs"]:
        """Of a match, for each pair of an image and a text by their places; a batch reads each of its images once."""
        outputs = []
        for indices in index_batches(len(image), self.batch_size):
            unique, slots = np.unique(image[indices], return_inverse=True)
            pixels = self._read(images, unique, name="images")[slots]
            outputs.append(self._batched(programs.log_odds, pixels, tokens[text[indices]]))
        return np.concatenate(outputs)

    def _filled(self, texts: Sequence[str], read: Callable[[Any], Any], *, top: int) -> list[Filled]:
        rows = [self._blanks.encoded(text) for text in texts]
        tokens = np.stack([row for row, _ in rows])
        # Few sizes, so that few programs are compiled.
        most = 1 << (max(len(slots) for _, slots in rows) - 1).bit_length()
        slots = np.stack([np.resize(slots, most) for _, slots in rows])
        size, filled = 1 if len(texts) == 1 else self.batch_size, []
        for indices in index_batches(len(texts), size):
            batch = jax.tree.map(lambda part: padded(part, size), (read(indices), tokens[indices], slots[indices]))
            batch = place(batch, params=self.params)
            found = np.asarray(programs.fill_mask(self.model, self.params, *batch, self.tokenizer.vocab_size))
            filled += [
                self._blanks.likeliest(row[: len(rows[index][1])], top=top) for row, index in zip(found, indices)
            ]
        return filled

    def _patch_masks(self, patch_mask: Any, *, count: int, single: bool) -> Bool[np.ndarray, "B N"]:
        side = self._side
        right = f"the image has {side} rows of {side} patches"
        try:
            masks = np.asarray(patch_mask)
        except ValueError as error:  # lists of different lengths
            raise UserError(f"patch_mask is {described(patch_mask)} with rows of different lengths; {right}") from error
        if masks.shape != (side, side) and (single or masks.shape != (count, side, side)):
            what = f"has the shape {masks.shape}" if masks.ndim else f"is {described(patch_mask)}"
            raise UserError(f"patch_mask {what}; {right}")
        if masks.dtype != bool and not np.isin(masks, (0, 1)).all():
            raise UserError(f"patch_mask is {described(masks)}; give true where a patch is to be painted, else false")
        return np.broadcast_to(masks.astype(bool).reshape(-1, side * side), (count, side * side))

    def _predicted(self, images: Any, texts: Any, *, verb: str) -> list[Any]:
        assert isinstance(self.task, LabelledTask)
        listed, tokens, each = self.reader.listed(images), self._tokens(texts), self.task.images
        groups: list[Any] = [group if isinstance(group, list | tuple) else [group] for group in listed]
        for index, group in enumerate(groups):
            if len(group) != each:
                raise UserError(
                    f"config.task={self.task.name} takes {each} images a text; images[{index}] holds {len(group)}"
                )
        self._check_as_many(groups, tokens, verb=verb)
        predicted: list[Any] = []
        for indices in index_batches(len(tokens), self.batch_size):
            pixels = np.stack([self.reader.read(groups[index], name=f"images[{index}]") for index in indices])
            image, text = (padded(rows, self.batch_size) for rows in (pixels, tokens[indices]))
            shown = self.task.shown(place({"image": image, "text": text}, params=self.params))
            predicted += self.task.predict(self.params, shown["image"], shown["text"])[: len(indices)]
        return predicted
