"""Every setting of a run, declared once with its unit and its reason.

A recipe in `configs/` starts from `default()` and changes the fields that differ. The tree is locked: a field
that is not declared here is refused, and so is a value of another type.
"""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

from mvlm_jax.config_migration import ENCODERS, PARTS, VERSION, migrate
from mvlm_jax.errors import UserError

# Fields that say how a run is carried out, not what it computes: a run may continue with other values of these.
CHANGEABLE_ON_RESUME = (
    "mesh.", "accumulate", "model.attention", "model.layer_loop", "model.remat", "data.workers", "data.prefetch",
    "data.data_dir", "checkpoint.", "log_every", "log.",
    "max_skipped_updates", "eval.", "compilation_cache",
)  # fmt: skip
# Fields that an evaluation may set otherwise than the training it evaluates.
CHANGEABLE_IN_EVALUATION = (
    *CHANGEABLE_ON_RESUME, "data.", "dtype", "seed", "optimizer.", "steps", "batch_size", "init_from.",
    "vqa.candidates", "image_encoder.trained_layers", "text_encoder.trained_layers",
    "image_encoder.dropout", "text_encoder.dropout", "cross.dropout",
    "image_encoder.stochastic_depth", "text_encoder.stochastic_depth", "cross.stochastic_depth",
)  # fmt: skip
REMAT = ("none", "inputs", "dots", "full")  # what the backward pass recomputes, the least first
CHOICES = {
    "config_version": (VERSION,),
    "hide_modality": ("none", "image", "text"),
    "dtype": ("auto", "float32", "bfloat16"),
    "mask.condition_on": ("unmasked", "masked", "none"),
    "loss.pixels": ("l1", "l2"),
    "data.epoch_of": ("image", "caption"),
    "model.token_head": ("dense", "tied"),
    "image_encoder.activation": ("gelu", "quick_gelu", "gelu_tanh"),
    "image_encoder.pooling": ("first", "mean"),
    "text_encoder.pooling": ("first", "mean"),
    "eval.rerank_by": ("itm", "itm+itc"),
    "model.attention": ("auto", "xla", "cudnn", "pallas"),
    "model.layer_loop": ("auto", "scan", "unroll"),
    "model.remat": ("auto", *REMAT),
}
LIMITS = (
    ("steps batch_size accumulate log_every max_skipped_updates image.size image_encoder.patch text_encoder.vocab_size "
     "cross.decoder_layers model.projection mask.image_cell matching.group data.prefetch vqa.decoder_layers "
     "vqa.answers_per_question vqa.answer_list vqa.candidates checkpoint.every checkpoint.keep_last eval.batch_size "
     "eval.host_bytes eval.bootstrap "
     + " ".join(f"{part}.{field}" for part in PARTS for field in ("width", "heads", "layers", "mlp_ratio")),
     lambda value: value >= 1, "must be at least 1"),
    ("optimizer.peak optimizer.final optimizer.weight_decay image_encoder.registers "
     "optimizer.image_encoder_peak optimizer.image_encoder_final "
     "optimizer.text_encoder_peak optimizer.text_encoder_final "
     "optimizer.warmup_steps optimizer.clip_norm loss.mim loss.mlm loss.itc loss.itm "
     "data.augment.operations checkpoint.keep_every eval.every eval.rerank",
     lambda value: value >= 0, "must not be negative"),
    ("log.examples", lambda value: value == 0 or value >= 2,
     "must be 0 or at least 2, since each example is also shown beside the partner of another one"),
    ("mask.image_ratio mask.text_ratio image_encoder.epsilon", lambda value: 0 < value < 1,
     "must lie between 0 and 1"),
    ("image_encoder.dropout text_encoder.dropout cross.dropout image_encoder.stochastic_depth "
     "text_encoder.stochastic_depth cross.stochastic_depth optimizer.ema", lambda value: 0 <= value < 1,
     "must be at least 0 and below 1"),
    ("image_encoder.trained_layers text_encoder.trained_layers", lambda value: value >= -1,
     "must be at least -1, which trains all"),
    ("data.workers", lambda value: value >= -1, "must be at least -1, which suits the machine"),
    ("optimizer.layer_decay data.fraction data.augment.min_scale", lambda value: 0 < value <= 1,
     "must lie above 0 and at most at 1"),
    ("data.augment.magnitude", lambda value: 0 <= value <= 10, "must lie between 0 and 10"),
    ("seed data.fraction_seed", lambda value: 0 <= value < 2**32, f"must lie between 0 and {2**32 - 1}"),
    ("image.mean image.std", lambda value: len(value) == 3, "must have three values: R, G, B"),
)  # fmt: skip


def default() -> ConfigDict:
    """The paper's values wherever the paper gives one (arXiv 2208.02131, section 4 and appendix)."""
    config = ConfigDict()

    config.config_version = VERSION  # version of these fields; `config_migration` reads earlier ones
    config.seed = 0  # everything random derives from (seed, stream, step)
    config.task = "pretrain"  # a name of `tasks/registry.py`
    config.hide_modality = "none"  # what the model never sees, for a baseline of a labelled task: none, image, text
    config.steps = 1000  # optimizer updates in the whole run
    config.batch_size = 512  # pairs in a step over all devices; a multiple of accumulate * matching.group
    config.accumulate = 1  # microbatches that a step's batch is cut into, to save memory; the gradient is the same
    config.dtype = "auto"  # of the computation: auto (bfloat16 on accelerators, float32 on CPU), float32, bfloat16
    config.log_every = 20  # steps between two lines of metrics.jsonl
    # Where compiled programs are kept for the next start: auto (the user's cache directory), off, or a directory.
    config.compilation_cache = "auto"
    config.max_skipped_updates = 10  # so many in a row end the run: their loss or gradient was not finite

    config.image = ConfigDict()
    config.image.size = 224  # pixels a side; a multiple of two patches, the side of a mask cell
    config.image.mean = (0.5, 0.5, 0.5)  # of RGB in [0, 1]; what the published ViT weights were trained with
    config.image.std = (0.5, 0.5, 0.5)  # likewise

    config.text = ConfigDict()
    config.text.tokenizer = ""  # tokenizer.json or vocab.txt; empty: one is trained on the training captions
    config.text.max_length = 40  # tokens a caption, start and end included; longer captions are cut

    config.image_encoder = ConfigDict()
    config.image_encoder.kind = "vit"  # vit, dinov2, clip or siglip
    config.image_encoder.patch = 16  # pixels a side
    config.image_encoder.epsilon = 1e-6  # what norms add to the variance; 1e-12 in folders of transformers
    config.image_encoder.activation = "gelu"  # of its MLPs: gelu, quick_gelu (OpenAI's CLIP), gelu_tanh (SigLIP)
    config.image_encoder.registers = 0  # tokens beside the patches that stand for no patch, as some of dinov2 have
    # How many of its last layers are trained; -1: all of the encoder, 0: nothing of it.
    config.image_encoder.trained_layers = -1
    config.image_encoder.pooling = "first"  # what is compared with texts: first (token), mean (of the patches)
    config.image_encoder.dropout = 0.0  # part of the features that is dropped behind each attention and MLP
    config.image_encoder.stochastic_depth = 0.0  # chance to skip a residual branch of the last layer; rises from 0

    config.text_encoder = ConfigDict()
    config.text_encoder.kind = "roberta"  # roberta (byte-level BPE); bert, distilbert or mpnet (WordPiece)
    config.text_encoder.vocab_size = 50265  # rows of the embedding table; a trained tokenizer has at most as many
    config.text_encoder.positions = 512  # rows of the position table, as in the published encoders
    config.text_encoder.trained_layers = -1  # as of the image encoder
    config.text_encoder.pooling = "first"  # what is compared with images: first (token), mean (of all but padding)
    config.text_encoder.dropout = 0.0  # as of the image encoder
    config.text_encoder.stochastic_depth = 0.0  # as of the image encoder

    config.cross = ConfigDict()  # the two cross encoders and the image decoder
    config.cross.dropout = 0.0  # as of the image encoder; of the answer decoder too
    config.cross.stochastic_depth = 0.0  # likewise

    config.model = ConfigDict()  # attention, layer_loop and remat say how it is computed: they change no value
    config.model.projection = 256  # width of the space in which images and texts are compared
    config.model.token_head = "dense"  # dense (the paper) or tied (to the token embeddings, as BERT)
    # kernel: xla, cudnn (NVIDIA GPUs in bfloat16), pallas (TPUs), auto (the fastest of the platform)
    config.model.attention = "auto"
    config.model.layer_loop = "auto"  # scan (one layer is compiled), unroll (all are; faster on GPUs), auto
    # what the backward pass computes again: none, inputs (norms, activations and softmax), dots (all but matrix
    # products), full, auto (inputs on a CPU, none elsewhere)
    config.model.remat = "auto"

    # Sizes are declared by `model_size`, with a comment for each name.
    for part, sizes in model_size("base").items():
        config[part].update(sizes)

    # Weights that a new run starts from, empty: random. Published ones are, for each encoder,
    # a file, a folder or a name on the Hugging Face Hub, as hf:facebook/dinov2-small.
    config.init_from = ConfigDict()
    config.init_from.image = ""  # of `image_encoder.kind`, named as in transformers, timm or open_clip
    config.init_from.checkpoint = ""  # workdir of a run, or a folder that was exported: everything that fits
    config.init_from.text = ""  # of `text_encoder.kind`, named as in transformers; a folder's tokenizer is used too

    config.mask = ConfigDict()
    config.mask.image_ratio = 0.6  # of the cells; exactly ceil(ratio * cells) are masked
    config.mask.image_cell = 2  # patches a side (32 pixels at 16-pixel patches, as SimMIM)
    config.mask.text_ratio = 0.3  # of a caption's ordinary tokens; exactly max(1, round(ratio * n))
    config.mask.condition_on = "unmasked"  # what the other modality shows a reconstruction: unmasked, masked, none

    config.loss = ConfigDict()  # weights; 0 switches an objective off
    config.loss.mim = 1.0  # masked image modeling: pixels of masked patches
    config.loss.mlm = 1.0  # masked language modeling: masked words
    config.loss.itc = 1.0  # image-text contrast
    config.loss.itm = 1.0  # image-text matching
    config.loss.pixels = "l1"  # of mim: l1 (the paper) or l2, the squared error

    config.matching = ConfigDict()
    config.matching.group = 32  # consecutive pairs among which hard negatives are sought (the paper's batch per GPU)

    config.vqa = ConfigDict()
    config.vqa.decoder_layers = 6  # of the decoder that writes answers
    config.vqa.answer_length = 10  # tokens of an answer, start and end included; longer ones are cut
    config.vqa.answers_per_question = 10  # different ones that are learned; the rarest of more are dropped
    config.vqa.answer_list = 3128  # the most frequent training answers, from which one is chosen
    config.vqa.candidates = 128  # answers with the likeliest first token, which are scored in full

    config.optimizer = ConfigDict()  # AdamW
    config.optimizer.warmup_steps = 100  # over which the learning rate rises linearly from 0
    config.optimizer.peak = 3e-4  # learning rate after the warm-up
    config.optimizer.final = 3e-5  # learning rate at the last step (cosine in between)
    # as `peak`, of the image encoder; lower, since the two encoders start from published weights
    config.optimizer.image_encoder_peak = 1e-5
    config.optimizer.image_encoder_final = 1e-5  # as `final`, of the image encoder
    config.optimizer.text_encoder_peak = 1e-5  # as `peak`, of the text encoder
    config.optimizer.text_encoder_final = 1e-5  # as `final`, of the text encoder
    config.optimizer.layer_decay = 1.0  # an encoder's layer learns at this times the rate of the one above it
    config.optimizer.frozen = ()  # regular expressions over parameter paths; what matches is not trained
    config.optimizer.ema = 0.0  # decay of a moving average of the parameters per step; 0: there is none
    config.optimizer.weight_decay = 0.05  # not on biases, norms, positions and single tokens
    config.optimizer.b1 = 0.9  # decay a step of the mean of the gradients
    config.optimizer.b2 = 0.999  # decay a step of the mean of their squares
    config.optimizer.clip_norm = 0.0  # global gradient norm; 0: no clipping

    config.data = ConfigDict()
    # What a run is trained on: one source, or several with the times that each example comes in an epoch, as in
    # "2*tfds:coco:train + tfds:vg:train".
    config.data.train = "tfds:shapes:train"
    config.data.fraction = 1.0  # of each training source without a ?fraction= of its own
    config.data.fraction_seed = 0  # which ones: the same at every `seed`
    # What comes once in an epoch: each image, with one of its captions, or each caption, with its image. Of labelled
    # examples (questions, statements, hypotheses) each comes once anyway.
    config.data.epoch_of = "image"
    config.data.eval = "tfds:shapes:val"  # the source that metrics are taken on
    config.data.data_dir = ""  # where prepared datasets are; empty: $TFDS_DATA_DIR or ~/tensorflow_datasets
    # Processes that decode and augment; 0: threads of this process. -1: two for each accelerator, none on a CPU.
    config.data.workers = -1
    config.data.prefetch = 2  # batches kept ready
    config.data.max_image_pixels = 89_478_485  # larger images are refused before they are decoded (Pillow's own limit)
    config.data.augment = ConfigDict()
    config.data.augment.min_scale = 0.2  # smallest area of the random crop, as a part of the image
    config.data.augment.flip = True  # never where the caption, question or answers say left or right
    config.data.augment.operations = 2  # RandAugment operations an image, none of them on colour; 0: none
    config.data.augment.magnitude = 7  # of each, 0 to 10

    config.mesh = ConfigDict()  # devices on each axis; -1 on one axis: all that are left
    config.mesh.data = -1  # parts of the batch
    config.mesh.fsdp = 1  # parts of the batch, of the parameters and of the optimizer's state
    config.mesh.tensor = 1  # parts of each layer: its heads and the hidden features of its MLP

    config.checkpoint = ConfigDict()
    config.checkpoint.every = 500  # steps
    config.checkpoint.keep_last = 3  # checkpoints; older ones are deleted
    config.checkpoint.keep_every = 0  # also keeps each step that is a multiple; 0: none

    config.eval = ConfigDict()
    config.eval.every = 0  # steps between two evaluations; 0: after the last step only
    config.eval.batch_size = 64  # does not change any metric
    config.eval.rerank = 32  # candidates per query that the matching head sorts again; 0: none
    # itm+itc: the matching head's log-odds and cosine / temperature. itm: the log-odds alone, as in the paper.
    config.eval.rerank_by = "itm+itc"
    config.eval.ema = False  # evaluate the moving average of the parameters
    config.eval.sweep = ()  # smaller numbers of candidates, for which recalls are given too
    config.eval.host_bytes = 2**30  # of images, of scores and of text features, each, kept in the host's memory at once
    config.eval.bootstrap = 2000  # resamples behind a 95% interval

    config.log = ConfigDict()  # where metrics go beside metrics.jsonl and TensorBoard, and what is shown there
    config.log.wandb = ""  # project of Weights & Biases; empty: none
    config.log.tracker = ""  # module:name of a tracker of your own, see docs/training.md; empty: none
    config.log.examples = 4  # of the evaluation split that are rebuilt at each evaluation, to be looked at; 0: none

    return config.lock()


def model_size(name: str) -> ConfigDict:
    """Widths and depths of a size, for `config.update`; `base` is the paper's.

    Raises:
      UserError: no such size.
    """
    sizes = {
        "tiny": {"width": 64, "heads": 2, "layers": 2, "cross_layers": 2, "decoder_layers": 1},
        "small": {"width": 384, "heads": 6, "layers": 12, "cross_layers": 3, "decoder_layers": 3},
        "base": {"width": 768, "heads": 12, "layers": 12, "cross_layers": 3, "decoder_layers": 3},
        "large": {"width": 1024, "heads": 16, "layers": 24, "cross_layers": 3, "decoder_layers": 3},
    }
    if name not in sizes:
        raise UserError(f"model size {name!r} is not one of {', '.join(sizes)}")
    size = sizes[name]
    # width: of a token's features
    # heads: of attention; they divide the width
    # mlp_ratio: width of an MLP's hidden layer, in widths
    # layers: of the encoder
    # cross.layers: of each of the two cross encoders
    # cross.decoder_layers: of the image decoder
    shared = {"width": size["width"], "heads": size["heads"], "mlp_ratio": 4}
    return ConfigDict(
        {
            "image_encoder": shared | {"layers": size["layers"]},
            "text_encoder": shared | {"layers": size["layers"]},
            "cross": shared | {"layers": size["cross_layers"], "decoder_layers": size["decoder_layers"]},
        }
    )


def validate(config: ConfigDict) -> None:
    """Refuses values that cannot work together.

    Raises:
      UserError: the field, the value received and what would be right.
    """
    fields = dict(flatten(config))
    for name, legal in CHOICES.items():
        if fields[name] not in legal:
            raise UserError(f"config.{name}={fields[name]!r} is not one of {', '.join(map(str, legal))}")
    for names, holds, rule in LIMITS:
        for name in names.split():
            if not holds(fields[name]):
                raise UserError(f"config.{name}={fields[name]} {rule}")
    if not 3 <= config.text.max_length <= config.text_encoder.positions:
        raise UserError(
            f"config.text.max_length={config.text.max_length} must lie between 3 (start, one token, end) "
            f"and config.text_encoder.positions={config.text_encoder.positions}"
        )
    for part in PARTS:
        width, heads = config[part].width, config[part].heads
        if width % heads:
            raise UserError(f"config.{part}.width={width} must be a multiple of config.{part}.heads={heads}")
    for part in ENCODERS:
        trained, layers = config[part].trained_layers, config[part].layers
        if trained > layers:
            raise UserError(
                f"config.{part}.trained_layers={trained} must be at most config.{part}.layers={layers}; -1 trains all"
            )
    cell = config.image_encoder.patch * config.mask.image_cell
    if config.image.size % cell:
        raise UserError(
            f"config.image.size={config.image.size} must be a multiple of {cell} pixels, a mask cell of "
            f"{config.mask.image_cell} patches of {config.image_encoder.patch}"
        )
    if config.init_from.checkpoint and (config.init_from.image or config.init_from.text):
        raise UserError(
            "config.init_from.checkpoint brings both encoders; leave config.init_from.image and .text empty beside it"
        )
    for pattern in config.optimizer.frozen:
        try:
            re.compile(pattern)
        except (re.error, TypeError) as error:
            raise UserError(
                f"config.optimizer.frozen: {pattern!r} is not a regular expression ({error}); "
                "one is image_encoder/.*, in quotes"
            ) from error
    if config.eval.ema and not config.optimizer.ema:
        raise UserError(
            "config.eval.ema=True needs a moving average of the parameters; with config.optimizer.ema=0.0 none is kept"
        )
    if not all(isinstance(k, int) and 0 < k <= config.eval.rerank for k in config.eval.sweep):
        raise UserError(
            f"config.eval.sweep={tuple(config.eval.sweep)} must be numbers from 1 to "
            f"config.eval.rerank={config.eval.rerank}"
        )


def flatten(config: Mapping[str, Any] | ConfigDict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted name, value) of every field, in order; tuples as lists, as JSON has them."""
    for name, value in sorted(config.items()):
        if isinstance(value, Mapping | ConfigDict):
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield prefix + name, list(value) if isinstance(value, tuple) else value


def to_json(config: ConfigDict) -> str:
    """The whole config as indented JSON, fields sorted."""
    return json.dumps(config.to_dict(), indent=2, sort_keys=True) + "\n"


def from_json(text: str | bytes, *, source: object = "config.json") -> ConfigDict:
    """Inverse of `to_json`; what an earlier version wrote is read too.

    Args:
      source: what the text is of, for the error.

    Raises:
      UserError: of a later version; or a field is missing, unknown or of another type than `default()` declares.
    """
    config = default()
    try:
        declared, values = dict(flatten(config)), json.loads(text)
        if not isinstance(values, dict):
            raise UserError(f"it holds a {type(values).__name__}; a JSON object is needed")
        if values.get("config_version", 1) is None:
            raise UserError("config_version is null; it is a whole number")
        fields = migrate({name: value for name, value in flatten(values) if value is not None})
        for problem, names in (("unknown", fields.keys() - declared), ("missing", declared.keys() - fields)):
            if names:
                more = f" and {len(names) - 5} more" if len(names) > 5 else ""
                raise UserError(f"{problem} fields: {', '.join(sorted(names)[:5])}{more}")
        config.update_from_flattened_dict(
            {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}
        )
    except (UserError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{source} cannot be used: {' '.join(str(error).split())}") from error
    return config


def differences(old: ConfigDict, new: ConfigDict, *, changeable: tuple[str, ...]) -> str:
    """The first few fields that differ, with both values; empty where only fields that may change do."""
    before, after = dict(flatten(old)), dict(flatten(new))
    names = [
        name
        for name in sorted(before | after)
        if before.get(name) != after.get(name) and not name.startswith(changeable)
    ]
    shown = [f"config.{name} is {before.get(name)!r} there and {after.get(name)!r} here" for name in names[:3]]
    return "; ".join(shown) + (f" (and {len(names) - 3} more)" if len(names) > 3 else "")
