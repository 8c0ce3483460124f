import pytest
from tiny import recipe

from mvlm_jax import config as config_lib
from mvlm_jax.data.formats.vqa import MINIVAL_PART
from mvlm_jax.errors import UserError
from mvlm_jax.interop.family import ACTIVATION_NAMES
from mvlm_jax.models.activations import ACTIVATIONS
from mvlm_jax.tasks import registry

FINETUNED = [("finetune_retrieval", ("flickr30k",)), ("finetune_retrieval", ("flickr8k",))] + [
    (f"finetune_{name}", arguments)
    for name in ("retrieval", "vqa", "nlvr2", "snli_ve")
    for arguments in ((), ("shapes",))
]


@pytest.mark.parametrize(
    "name, arguments",
    [
        ("demo", ()),
        ("flickr8k", ()),
        ("flickr8k", ("small",)),
        ("flickr8k", ("minilm",)),
        ("flickr8k", ("published",)),
        ("flickr8k", ("published_gpu",)),
        ("pretrain_4m", ()),
        ("pretrain_4m", ("large",)),
        ("pretrain_4m", ("ablation",)),
        ("pretrain_4m", ("cc3m_25,caption",)),
        *FINETUNED,
    ],
)
def test_every_recipe_is_valid_and_survives_json(name, arguments):
    config = recipe(name, *arguments)
    registry.validate(config)
    again = config_lib.from_json(config_lib.to_json(config))
    assert config_lib.differences(config, again, changeable=()) == ""


def test_the_paper_recipe_has_the_papers_numbers():
    config = recipe("pretrain_4m")
    assert (config.batch_size, config.image.size, config.image_encoder.patch) == (512, 224, 16)
    assert (config.cross.width, config.cross.heads, config.image_encoder.layers) == (768, 12, 12)
    assert (config.cross.layers, config.cross.decoder_layers) == (3, 3)
    assert (config.mask.image_ratio, config.mask.text_ratio, config.matching.group) == (0.6, 0.3, 32)
    optimizer = config.optimizer
    assert (optimizer.peak, optimizer.final) == (3e-4, 3e-5)
    assert optimizer.image_encoder_peak == optimizer.text_encoder_peak == 1e-5
    assert optimizer.weight_decay == 0.05
    assert optimizer.warmup_steps * 10 == config.steps


@pytest.mark.parametrize(
    ("variant", "steps", "warmup"),
    [
        # Of 512 pairs: 50 epochs of 7,812 steps over the 4M images, 10,050 over their 5,146,000 captions.
        ("base", 390_600, 39_060),
        ("large", 390_600, 39_060),
        ("base,caption", 502_500, 50_250),
        # 30 epochs over a part of CC3M and all 113,287 images, or 566,747 captions, of COCO.
        ("cc3m_100", 179_460, 29_910),
        ("ablation", 93_060, 15_510),
        ("ablation,caption", 119_610, 19_935),
        ("cc3m_50", 93_060, 15_510),
        ("cc3m_25", 49_830, 8_305),
        ("cc3m_10,caption", 50_490, 8_415),
    ],
)
def test_epochs_are_counted_in_what_an_epoch_is_of(variant, steps, warmup):
    config = recipe("pretrain_4m", variant)
    assert (config.steps, config.optimizer.warmup_steps) == (steps, warmup)
    assert config.data.epoch_of == ("caption" if variant.endswith(",caption") else "image")


def test_limited_data_are_a_part_of_cc3m_with_the_whole_of_coco():
    assert recipe("pretrain_4m", "cc3m_10").data.train == "tfds:cc3m:train?fraction=0.1 + tfds:coco:train"
    assert recipe("pretrain_4m", "ablation").data.train == recipe("pretrain_4m", "cc3m_50").data.train


@pytest.mark.parametrize("variant", ["cc3m_30", "base,captions", "base,image,caption", "caption", ""])
def test_an_unknown_variant_names_those_that_there_are(variant):
    with pytest.raises(ValueError, match="is not one of base, large, cc3m_100, .*, which may be followed by ,caption"):
        recipe("pretrain_4m", variant)


@pytest.mark.parametrize(
    ("name", "argument", "epochs", "examples", "batch_size", "rate"),
    [
        # Images times five captions; a few of COCO's have more.
        ("retrieval", "coco", 5, 113_287 * 5, 256, 1e-5),
        ("retrieval", "flickr30k", 10, 29_000 * 5, 256, 1e-5),
        # All questions of train and val, less a sixteenth of those of val.
        ("vqa", "", 8, 658_111 - 214_354 / MINIVAL_PART, 256, 2e-5),
        ("nlvr2", "", 10, 86_373, 128, 2e-5),
        ("snli_ve", "", 5, 529_527, 256, 2e-5),
    ],
)
def test_fine_tuning_has_the_numbers_of_albef(name, argument, epochs, examples, batch_size, rate):
    config = recipe(f"finetune_{name}", argument)
    assert config.image.size == 384
    assert config.batch_size == batch_size
    assert config.steps == pytest.approx(epochs * examples / batch_size, rel=1e-3)
    optimizer = config.optimizer
    assert optimizer.peak == optimizer.image_encoder_peak == optimizer.text_encoder_peak == rate
    assert optimizer.final == optimizer.image_encoder_final == optimizer.text_encoder_final == 1e-6
    assert (optimizer.weight_decay, optimizer.warmup_steps) == (0.05, 0)  # ALBEF has 0.02, and 1 to 4 epochs
    # The captions above are counted one by one.
    assert config.data.epoch_of == ("caption" if name == "retrieval" else "image")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "retrieval"}, "must be 0 in config.task=retrieval"),
        ({"hide_modality": "image"}, "is for tasks over labelled examples"),
        ({"init_from.checkpoint": "a", "init_from.text": "b"}, "brings both encoders"),
        (
            {"init_from.image": "hf:tiny/vit@"},
            r"^config.init_from.image=hf:tiny/vit@ is no name on the Hugging Face Hub; it is written hf:owner/name\[/f",
        ),
        ({"text.tokenizer": "hf:"}, "^config.text.tokenizer=hf: is no name on the Hugging Face Hub"),
        ({"task": "vqa", "vqa.answer_length": 2}, "must be at least 3"),
        ({"eval.sweep": (64,)}, "must be numbers from 1 to config.eval.rerank=32"),
        ({"optimizer.peak": float("nan")}, "must not be negative"),
        ({"image.mean": (0.5,)}, "must have three values"),
        ({"task": "captioning"}, "is not one of pretrain, retrieval, vqa, nlvr2, entailment"),
        ({"image_encoder.kind": "resnet"}, "config.image_encoder.kind='resnet' is not one of vit"),
        ({"text_encoder.kind": "elmo"}, "config.text_encoder.kind='elmo' is not one of roberta, bert"),
        ({"batch_size": 48}, "must be a multiple of 32, config.accumulate=1 times config.matching.group=32"),
        ({"batch_size": 96, "accumulate": 2}, "must be a multiple of 64, config.accumulate=2 times config.matching"),
        ({"task": "vqa", "batch_size": 33, "accumulate": 2}, "must be a multiple of 2, config.accumulate=2$"),
    ],
)
def test_values_that_cannot_work_together_are_refused(changes, message):
    config = config_lib.default()
    config.update_from_flattened_dict(changes)
    with pytest.raises(UserError, match=message):
        registry.validate(config)


@pytest.mark.parametrize(
    "changes", [{"task": "vqa"}, {"task": "nlvr2"}, {"task": "entailment"}, {"loss.itm": 0.0}], ids=str
)
def test_the_batch_need_not_fit_groups_that_are_not_used(changes):
    config = config_lib.default()
    config.update_from_flattened_dict({"batch_size": 33, **changes})
    registry.validate(config)


def test_unknown_fields_and_wrong_types_are_refused():
    config = config_lib.default()
    with pytest.raises(AttributeError):
        config.stepz = 1
    with pytest.raises(TypeError):
        config.steps = "many"


@pytest.mark.parametrize(("name", "value"), [("fraction", 0.0), ("fraction", 1.5), ("fraction_seed", -1)])
def test_part_of_the_data_that_there_is_not_is_refused(name, value):
    config = config_lib.default()
    config.data[name] = value
    with pytest.raises(UserError, match=f"^config.data.{name}={value} must lie "):
        registry.validate(config)


def test_where_a_run_may_go_on_with_other_values():
    old, new = config_lib.default(), config_lib.default()
    new.mesh.fsdp, new.log_every, new.data.workers = 2, 5, 3
    assert config_lib.differences(old, new, changeable=config_lib.CHANGEABLE_ON_RESUME) == ""
    new.seed = 9
    found = config_lib.differences(old, new, changeable=config_lib.CHANGEABLE_ON_RESUME)
    assert found == "config.seed is 0 there and 9 here"


PARTS = ("image_encoder", "text_encoder", "cross")


@pytest.mark.parametrize(
    ("name", "value"),
    [(f"{part}.{rate}", 0.5) for part in PARTS for rate in ("dropout", "stochastic_depth")]
    + [(f"{part}.trained_layers", 1) for part in PARTS[:2]],
)
def test_an_evaluation_may_have_other_values_of_what_training_alone_reads(name, value):
    old, new = config_lib.default(), config_lib.default()
    new.update_from_flattened_dict({name: value})
    assert config_lib.differences(old, new, changeable=config_lib.CHANGEABLE_IN_EVALUATION) == ""
    found = config_lib.differences(old, new, changeable=config_lib.CHANGEABLE_ON_RESUME)
    assert found.startswith(f"config.{name} is ")


def test_every_activation_is_a_choice_and_has_its_names_in_published_configs():
    assert config_lib.CHOICES["image_encoder.activation"] == tuple(ACTIVATIONS) == tuple(ACTIVATION_NAMES)
