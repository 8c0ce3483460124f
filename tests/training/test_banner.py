import jax
from toy import ToyTask, toy_config

import mvlm_jax
from mvlm_jax.training.banner import _short, banner
from mvlm_jax.training.inventory import Member, describe
from mvlm_jax.training.mesh import make_mesh
from mvlm_jax.training.program import make_program
from mvlm_jax.training.task import DataSizes


class HalfFrozen(ToyTask):
    frozen_rules = ((r"encoder/.*", -1),)


def test_a_run_says_what_it_is_in_a_line_for_each_subject(tmp_path):
    config = toy_config(accumulate=2, **{"eval.every": 3, "mesh.data": 1, "log.wandb": "mvlm"})
    config.data.train = "2*tfds:coco:train + tfds:vg:train"
    mesh = make_mesh(data=1, fsdp=1, tensor=1, devices=jax.devices()[:1])
    task = HalfFrozen()
    program = make_program(task=task, config=config, mesh=mesh)
    data = DataSizes(train=(20, 8), epoch=48, evaluated=12)
    host = Member("a", devices=1, kind="cpu", examples=16, workers=0)
    about = {"config": config, "mesh": mesh, "program": program, "data": data, "directory": tmp_path}
    assert banner(task, members=[host], **about) == [
        f"run: pretrain, mvlm-jax {mvlm_jax.__version__}, JAX {jax.__version__}",
        f"devices: 1 x {jax.devices()[0].device_kind}, 1 process",
        "mesh: data 1, fsdp 1, tensor 1",
        # 16 * 8 + 8 and 8 * 1 + 1.
        "parameters: 145 (encoder 136, head 9); 9 of them are trained",
        "batch: 16 examples, 16 a device, in 2 microbatches, in float32",
        "steps: 9, 3 epochs, a checkpoint every 3, an evaluation every 3",
        "data: 2*tfds:coco:train + tfds:vg:train (20 + 8 examples, 48 in an epoch); evaluated on tfds:shapes:val (12)",
        f"logs: {tmp_path}/metrics.jsonl, Weights & Biases project mvlm; watch with: tensorboard --logdir={tmp_path}",
    ]
    several = banner(task, members=[host, host._replace(host="b")], **about)
    assert several[2:3] == describe([host, host._replace(host="b")])


def test_large_numbers_are_short():
    numbers = (999, 1000, 86_567_656, 999_600, 1_234_567_890)
    assert [_short(number) for number in numbers] == ["999", "1 k", "86.6 M", "1 M", "1.23 G"]
