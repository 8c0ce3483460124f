"""The arms of an ablation, and pre-training as its runs share what they can: programs, images and the split."""

import dataclasses
import functools
import threading
from concurrent import futures
from typing import Any, NamedTuple

import jax
import numpy as np
from ablation_statistics import encoded
from ml_collections import ConfigDict

from mvlm_jax.data.augmentation import PlannedImage, decode_for_crop
from mvlm_jax.data.images import UndecodableImage
from mvlm_jax.data.mixtures import Mixture
from mvlm_jax.data.pipeline import EvalSplit, PairExamples
from mvlm_jax.evaluation.retrieval import rank_split, recalls
from mvlm_jax.tasks.pretrain import Pretrain
from mvlm_jax.training.mesh import make_mesh, replicated
from mvlm_jax.training.program import Program, make_program
from mvlm_jax.training.task import Params

LOSSES = ("mim", "mlm", "itc", "itm")


class Arm(NamedTuple):
    """What is trained; the rest of a run is the recipe's."""

    losses: tuple[str, ...]
    condition_on: str = "unmasked"  # as config.mask.condition_on

    def config(self, recipe: ConfigDict, *, fraction: float, seed: int) -> ConfigDict:
        """Losses keep the weights of the recipe; one that the recipe leaves out has the weight 1."""
        config = recipe.copy_and_resolve_references()
        for loss in LOSSES:
            config.loss[loss] = (recipe.loss[loss] or 1.0) if loss in self.losses else 0.0
        config.mask.condition_on = self.condition_on
        config.data.fraction, config.seed = fraction, seed
        return config


ARMS = {
    "itc": Arm(("itc",)),
    "itc_itm": Arm(("itc", "itm")),
    "mlm": Arm(("itc", "itm", "mlm")),
    "mim": Arm(("itc", "itm", "mim")),
    "mlm_mim_independent": Arm(LOSSES, condition_on="none"),
    "both_masked": Arm(LOSSES, condition_on="masked"),
    "maskvlm": Arm(LOSSES),
    "reconstruction_only": Arm(("mim", "mlm")),
}


class DecodedImages:
    """Decoded training images, each kept from its first use on while there is room.

    Augmentation begins with a crop of the decoded image, so what is decoded does not depend on it, but for the scale at
    which a JPEG is decoded: each of these is kept by itself.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes, self._bytes = max_bytes, 0
        self._images: dict[tuple[Any, ...], np.ndarray] = {}
        self._lock = threading.Lock()
        self.decoded = 0  # how often an image was

    def filled(self, planned: PlannedImage, *, identity: tuple[Any, ...]) -> PlannedImage:
        """The same with its pixels. One whose body is broken is left to whoever makes it.

        Args:
          identity: of the encoded image.
        """
        scale = planned.scale
        image = self._images.get((identity, planned.encoded.asked_size(scale=scale)))
        if image is None:
            try:
                image = decode_for_crop(planned.encoded, box=planned.box, size=planned.size)
            except UndecodableImage:
                return planned
            # Asked again: a fault may have changed the decoder.
            key = (identity, planned.encoded.asked_size(scale=scale))
            with self._lock:
                self.decoded += 1
                if key not in self._images and self._bytes + image.nbytes <= self._max_bytes:
                    self._images[key] = image
                    self._bytes += image.nbytes
        return planned._replace(decoded=image)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SharedExamples(PairExamples):
    """The pairs of a run, their images decoded once for all runs."""

    decoded: DecodedImages

    def planned(self, image: bytes, *, decode: bool, **options: Any) -> PlannedImage:
        planned = super().planned(image, decode=decode, **options)
        # Bytes of one length and one hash are taken for one image.
        return planned if decode else self.decoded.filled(planned, identity=(len(image), hash(image)))


@dataclasses.dataclass(frozen=True)
class AblationTask(Pretrain):
    """Pre-training whose results have the ranks of all queries."""

    decoded: DecodedImages
    whole_split: EvalSplit

    @property
    def split(self) -> EvalSplit:
        return self.whole_split

    @classmethod
    def mixture(cls, config: ConfigDict) -> Mixture:
        data = config.data
        return _mixture(data.train, data.data_dir, data.epoch_of, data.fraction, data.fraction_seed)

    @property
    def training_examples(self) -> SharedExamples:
        return SharedExamples(**self.example_fields, decoded=self.decoded)

    def recalls(self, params: Params) -> dict[str, dict[str, Any]]:
        """Empty where no loss trains the embeddings."""
        if not (self.config.loss.itc or self.config.loss.itm):
            return {}
        split = self.split
        found = rank_split(self.model, params, split, **self.retrieval_options)
        ranks = {f"{way}{by}": encoded(of) for by, both in found.items() for way, of in both._asdict().items()}
        ranks["captions"] = encoded(np.bincount(split.caption_image, minlength=len(split)))
        metrics = {"images": len(split), "captions": len(split.captions)} | recalls(found)
        return {f"retrieval-{self.eval_name}": metrics, f"ranks-{self.eval_name}": ranks}


class Programs:
    """The compiled training step of each arm, for any seed and fraction.

    On accelerators all arms compile at the same time, while the first runs go on.
    """

    def __init__(self) -> None:
        self._pool = futures.ThreadPoolExecutor(max_workers=len(ARMS))
        self._tracing = threading.Lock()
        self._programs: dict[tuple[Any, ...], futures.Future[Program]] = {}

    def of(self, arm: str, task: AblationTask) -> Program:
        """Waits until it is compiled."""
        return self.begin(arm, task).result()

    def begin(self, arm: str, task: AblationTask) -> futures.Future[Program]:
        # Masks depend on the ids of the special tokens, which two fractions may have in other places.
        key = (arm, tuple(task.tokenizer.ids))
        if key not in self._programs:
            self._programs[key] = self._pool.submit(self._compiled, task)
        return self._programs[key]

    def _compiled(self, task: AblationTask) -> Program:
        mesh = make_mesh(**task.config.mesh)
        with jax.set_mesh(mesh):
            with self._tracing:  # in Python, so several at once would only disturb each other
                program = make_program(task=task, config=task.config, mesh=mesh, any_seed=True)
                batch = {
                    name: jax.ShapeDtypeStruct(rows.shape, rows.dtype, sharding=program.batch_sharding)
                    for name, rows in task.batch_shapes.items()
                }
                seed = jax.ShapeDtypeStruct((), np.uint32, sharding=replicated(mesh))
                lowered = program.step.lower(program.state, batch, seed)
            return program._replace(step=lowered.compile())


@functools.lru_cache(maxsize=16)
def _mixture(train: str, data_dir: str, epoch_of: str, fraction: float, fraction_seed: int) -> Mixture:
    config = ConfigDict({"data": {"train": train, "data_dir": data_dir, "epoch_of": epoch_of}})
    config.data.update({"fraction": fraction, "fraction_seed": fraction_seed})
    return Pretrain.mixture(config)
