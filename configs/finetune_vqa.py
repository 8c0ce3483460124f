"""VQA v2 from a pre-trained model, by ALBEF's recipe; `finetune_vqa:shapes` over drawn scenes, on a laptop.

mvlm prepare --dataset=shapes --data_dir=runs/data
mvlm prepare --dataset=shapes_vqa --data_dir=runs/data
mvlm train --config=demo --workdir=runs/demo --config.data.data_dir=runs/data
mvlm train --config=finetune_vqa:shapes --workdir=runs/vqa --config.data.data_dir=runs/data \
  --config.init_from.checkpoint=runs/demo

mvlm train --config=finetune_vqa --workdir=runs/vqa --config.init_from.checkpoint=PRETRAINED \
  --config.data.train='vqa:VQA?split=trainval' --config.data.eval='vqa:VQA?split=minival'
mvlm evaluate --workdir=runs/vqa --config.data.eval='vqa:VQA?split=test' --submission=evalai.json

VQA is a directory with the published JSON files beside COCO's train2014/, val2014/ and test2015/. What the drawn ones
give is in docs/results.md; the published ones are not measured. docs/tasks.md says what differs from ALBEF: the
questions about Visual Genome that it trains on besides, among others.
"""

from ml_collections import ConfigDict

from mvlm_jax.configs import _finetune

EPOCHS, QUESTIONS = 8, 443_757 + 214_354 * 15 // 16  # of train and of val, about a sixteenth of it held back in minival


def get_config(variant: str = "") -> ConfigDict:
    if variant == "shapes":
        config = _finetune.over_shapes("vqa", dataset="shapes_vqa", steps=1000)
        config.text.max_length = 20  # "how many shapes are there?" takes 19
        # One word, on which all agree.
        config.vqa.answers_per_question = 1
        config.vqa.answer_length = 8
        config.vqa.decoder_layers = 2
        return config
    if variant:
        raise ValueError(f"variant {variant!r} is not shapes")
    config = _finetune.published("vqa", epochs=EPOCHS, examples=QUESTIONS, batch_size=256, rate=2e-5)
    config.data.train, config.data.eval = "vqa:VQA?split=trainval", "vqa:VQA?split=minival"
    return config
