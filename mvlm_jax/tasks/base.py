"""What all tasks share: everything that a config says and that does not depend on the objective."""

import dataclasses
import functools
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key, PyTree
from ml_collections import ConfigDict

from mvlm_jax.config_migration import PARTS
from mvlm_jax.data.augmentation import Augment
from mvlm_jax.data.background import Batch as HostBatch
from mvlm_jax.data.background import in_background, worker_count
from mvlm_jax.data.examples import Source
from mvlm_jax.data.images import ImageSpec
from mvlm_jax.data.mixtures import Mixture, open_mixture
from mvlm_jax.data.sources import open_source, split_name
from mvlm_jax.data.text import Tokenizer, train_tokenizer
from mvlm_jax.data.training_examples import TrainingBatches, TrainingExamples
from mvlm_jax.errors import UserError
from mvlm_jax.interop import hub
from mvlm_jax.interop.checkpoint import import_checkpoint
from mvlm_jax.interop.families import text_family
from mvlm_jax.interop.importing import import_encoders
from mvlm_jax.interop.model_card import About
from mvlm_jax.interop.parameters import flat, part_of
from mvlm_jax.models.compute import check_attention
from mvlm_jax.models.dropout import example_keys
from mvlm_jax.models.maskvlm import MaskVLM
from mvlm_jax.models.parameter_rules import (
    DECAY_RULES,
    LAYER_RULES,
    OPTIMIZER_RULES,
    SHARDING_RULES,
    frozen_layer_rules,
)
from mvlm_jax.tasks.model import compute_of, maskvlm_fields
from mvlm_jax.tasks.tokenizer import TOKENIZER_FILE, open_tokenizer
from mvlm_jax.training import hosts
from mvlm_jax.training.mesh import batch_sharding, make_mesh, process_rows
from mvlm_jax.training.streams import Streams
from mvlm_jax.training.task import DataSizes, Params, StartWeights, Task


@dataclasses.dataclass(frozen=True)
class BaseTask(Task):
    """The part of a `Task` that is the same in all of them; a task is a subclass in a file of its own."""

    config: ConfigDict
    tokenizer: Tokenizer

    name: ClassVar[str]  # `config.task`
    about: ClassVar[About]  # for a model card
    images: ClassVar[int] = 1  # in each example
    labels: ClassVar[tuple[str, ...]] = ()  # that the model chooses from, in the order of its logits
    asset_files: ClassVar[tuple[str, ...]] = (TOKENIZER_FILE,)  # what `save_assets` writes
    verbs: ClassVar[tuple[str, ...]] = ()  # what a loaded model of this task can do; methods of `inference.Inference`
    embeds: ClassVar[bool] = False  # whether images and texts are embedded by themselves, so that they can be ranked
    submits: ClassVar[bool] = False  # whether an evaluation server takes its predictions
    headline: ClassVar[tuple[str, ...]] = ()  # metrics that say how good a run is, the first of all first

    sharding_rules = SHARDING_RULES
    optimizer_rules = OPTIMIZER_RULES
    decay_rules = DECAY_RULES
    layer_rules = LAYER_RULES
    batch_type: ClassVar[type[TrainingBatches]]
    open_source: ClassVar[Callable[..., Source[Any]]] = staticmethod(open_source)  # called with a URI and `data_dir`

    @classmethod
    def check(cls, config: ConfigDict) -> None:
        """
        Raises:
          UserError: a value that does not fit this task.
        """
        group = cls.group(config)
        if config.batch_size % (config.accumulate * group):
            groups = f" times config.matching.group={group}" if group > 1 else ""
            raise UserError(
                f"config.batch_size={config.batch_size} must be a multiple of {config.accumulate * group}, "
                f"config.accumulate={config.accumulate}{groups}"
            )

    @classmethod
    def group(cls, config: ConfigDict) -> int:
        """Consecutive examples that the objective needs together."""
        return 1

    @classmethod
    def open(cls, config: ConfigDict, *, workdir: str | Path | None) -> "BaseTask":
        """
        Args:
          workdir: of the run whose tokenizer and other assets are taken, where it has them; None: of no run.

        Raises:
          UserError: a source or an asset that is missing or does not fit the config; an attention kernel that this
            platform does not have.
        """
        check_attention(compute_of(config), platform=jax.default_backend())
        with hosts.together():
            tokenizer = cls.open_tokenizer(config, workdir=workdir)
        # Each process that finds none trains its own, from the same captions.
        hosts.check_same(tokenizer=tokenizer.to_json())
        return cls(config=config, tokenizer=tokenizer, **cls.open_assets(config, workdir=workdir))

    @classmethod
    def describe(cls, config: ConfigDict) -> "BaseTask":
        """The task without its data: shapes, parameters and a loss."""
        # The special tokens come first in every tokenizer that is trained, whatever it is trained on.
        kind = text_family(config.text_encoder.kind).tokenizer
        tokenizer = train_tokenizer(["a caption"], kind=kind, vocab_size=config.text_encoder.vocab_size)
        return cls(config=config, tokenizer=tokenizer)

    @classmethod
    def open_tokenizer(cls, config: ConfigDict, *, workdir: str | Path | None) -> Tokenizer:
        """See `tokenizer.open_tokenizer`."""
        return open_tokenizer(config, workdir=workdir, texts=functools.partial(cls.training_texts, config))

    @classmethod
    def training_texts(cls, config: ConfigDict) -> Iterable[str]:
        """What a tokenizer is trained on."""
        raise NotImplementedError

    @classmethod
    def open_assets(cls, config: ConfigDict, *, workdir: str | Path | None) -> dict[str, Any]:
        """Fields of the class that are neither config nor tokenizer."""
        return {}

    @classmethod
    def read_assets(cls, directory: Path) -> dict[str, Any]:
        """`open_assets` from what `save_assets` wrote to a run or an export."""
        return {}

    @classmethod
    def build_model(cls, config: ConfigDict, *, pad_id: int) -> MaskVLM:
        """The model; its parameters are made by calling it with `model_inputs`."""
        return MaskVLM(**maskvlm_fields(config, pad_id=pad_id))

    @classmethod
    def model_inputs(cls, config: ConfigDict) -> tuple[Array, ...]:
        """One example of zeros."""
        size = config.image.size
        return jnp.zeros((1, size, size, 3), jnp.uint8), jnp.zeros((1, config.text.max_length), jnp.int32)

    @classmethod
    def parameter_shapes(cls, config: ConfigDict) -> PyTree[jax.ShapeDtypeStruct]:
        # No shape depends on the kernel, which this machine need not have.
        config = config.copy_and_resolve_references()
        config.model.attention = "xla"
        inputs = cls.model_inputs(config)
        return jax.eval_shape(cls.build_model(config, pad_id=0).init, jax.random.key(0), *inputs)["params"]

    @classmethod
    def mixture(cls, config: ConfigDict) -> Mixture:
        """The training examples that the run sees."""
        data = config.data
        return open_mixture(
            data.train,
            data_dir=data.data_dir,
            fraction=data.fraction,
            fraction_seed=data.fraction_seed,
            opener=cls.open_source,
        )

    @functools.cached_property
    def training_mixture(self) -> Mixture:
        return self.mixture(self.config)

    @functools.cached_property
    def eval_source(self) -> Source[Any]:
        return type(self).open_source(self.config.data.eval, data_dir=self.config.data.data_dir)

    def data_sizes(self) -> DataSizes:
        mixture = self.training_mixture
        return DataSizes(tuple(map(len, mixture.components)), mixture.epoch_size, len(self.eval_source))

    @functools.cached_property
    def model(self) -> Any:
        return self.build_model(self._with_frozen_encoders(), pad_id=self.tokenizer.ids.pad)

    def _with_frozen_encoders(self) -> ConfigDict:
        """The config, in which an encoder that `optimizer.frozen` matches as a whole has no trained layers."""
        patterns = self.config.optimizer.frozen
        if not patterns:
            return self.config
        config = self.config.copy_and_resolve_references()
        paths = flat(self.parameter_shapes(config))
        trained = {part_of(path) for path in paths if not any(re.fullmatch(pattern, path) for pattern in patterns)}
        for part in {"image_encoder", "text_encoder"} - trained:
            config[part].trained_layers = 0
        return config

    @property
    def patches_trained(self) -> bool:
        """Whether the patch embedding is: with any number of `trained_layers` it is frozen."""
        return self._with_frozen_encoders().image_encoder.trained_layers < 0

    def dropout_keys(self, streams: Streams, *, examples: int) -> Key[Array, " B"] | None:
        """One for each example of a global batch; None where the config drops nothing."""
        parts = [self.config[part] for part in PARTS]
        if not any(part.dropout or part.stochastic_depth for part in parts):
            return None
        return example_keys(streams.key("dropout"), examples)

    def init(self, key: Key[Array, ""]) -> Params:
        return self.model.init(key, *self.model_inputs(self.config))["params"]

    def start_weights(self, shapes: PyTree[jax.ShapeDtypeStruct]) -> StartWeights | None:
        config = self.config
        if not any(config.init_from.values()):
            return None
        if config.init_from.checkpoint:
            self._check_tokenizer(config.init_from.checkpoint)
            return import_checkpoint(config.init_from.checkpoint, shapes=shapes, config=config)
        return import_encoders(shapes, config=config, tokenizer=self.tokenizer)

    def _check_tokenizer(self, checkpoint: str) -> None:
        theirs = Tokenizer.load(hub.local_path(checkpoint) / TOKENIZER_FILE, kind=self.tokenizer.kind)
        if theirs.to_json() != self.tokenizer.to_json():
            raise UserError(
                f"config.text.tokenizer={self.config.text.tokenizer!r} is another tokenizer than that of "
                f"config.init_from.checkpoint={checkpoint}; leave it empty"
            )

    @property
    def frozen_rules(self) -> tuple[tuple[str, int], ...]:
        image, text = self.config.image_encoder, self.config.text_encoder
        return (
            *frozen_layer_rules("image_encoder", layers=image.layers, trained=image.trained_layers),
            *frozen_layer_rules("text_encoder", layers=text.layers, trained=text.trained_layers),
        )

    @property
    def training_examples(self) -> TrainingExamples:
        """In the order of the run; each begins with its id."""
        raise NotImplementedError

    @property
    def example_fields(self) -> dict[str, Any]:
        """Of `TrainingExamples`."""
        config = self.config
        augment = Augment(**config.data.augment)
        return {"mixture": self.training_mixture, "seed": config.seed, "spec": self.image_spec, "augment": augment}

    @property
    def image_spec(self) -> ImageSpec:
        return ImageSpec(size=self.config.image.size, max_pixels=self.config.data.max_image_pixels)

    @functools.cached_property
    def host_batches(self) -> TrainingBatches:
        """The rows of this host, of the batch of any step."""
        config = self.config
        sharding = batch_sharding(make_mesh(**config.mesh))
        return self.batch_type(
            self.training_examples,
            self.tokenizer,
            max_length=config.text.max_length,
            batch_size=config.batch_size,
            rows=tuple(map(int, process_rows(config.batch_size, sharding))),
        )

    def input_workers(self) -> int:
        return self._input_workers

    @functools.cached_property
    def _input_workers(self) -> int:  # once, since it may warn
        data, batches = self.config.data, self.host_batches
        devices = jax.local_device_count() if jax.default_backend() != "cpu" else 0
        return worker_count(data.workers, devices=devices, batch_bytes=batches.image_bytes, prefetch=data.prefetch)

    def train_batches(self, start_step: int) -> Iterator[HostBatch]:
        prefetch = self.config.data.prefetch
        return in_background(self.host_batches, start_step=start_step, workers=self.input_workers(), prefetch=prefetch)

    def example_ids(self, step: int) -> list[str]:
        examples, size = self.training_examples, self.config.batch_size
        return [examples[index][0] for index in range(step * size, (step + 1) * size)]

    @property
    def eval_name(self) -> str:
        return split_name(self.config.data.eval)

    def submission(self, params: Params) -> tuple[dict[str, dict[str, Any]], str]:
        raise UserError(f"config.task={self.name} has no evaluation server")

    def classify(
        self, params: Params, directory: Path, *, class_names: Path | None, templates: Path | None
    ) -> dict[str, dict[str, Any]]:
        raise UserError(f"config.task={self.name} does not embed images and texts, so it cannot classify by names")

    def save_assets(self, workdir: Path) -> None:
        self.tokenizer.save(workdir / TOKENIZER_FILE)
