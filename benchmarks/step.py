"""How fast one full training step (forward, backward, AdamW) is: ours against the PyTorch twin, eager and compiled.

Each contender lives in a process of its own and they take turns, so that whatever else the machine does meets all of
them. Rounds are run in alternating order; the last line is one JSON object.

Example:
  python benchmarks/step.py --size=small --image_size=96 --batch_size=32 --dtype=float32 --rounds=5
"""

import argparse
import contextlib
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

CONTENDERS = ("jax", "torch_eager", "torch_compiled")
BATCHES = 4  # kept on the host and used in turn
PAD, START, END, MASK, UNKNOWN = 1, 0, 2, 4, 3


def make_batches(config) -> list[dict[str, np.ndarray]]:
    """Noise in place of images, captions of 8 to 25 tokens (and some at full length), every image its own."""
    rng = np.random.default_rng(0)
    batches = []
    for _ in range(BATCHES):
        text = rng.integers(5, config.text.vocab_size, (config.batch_size, config.text.max_length), dtype=np.int32)
        lengths = np.minimum(rng.poisson(13, config.batch_size) + 3, config.text.max_length)
        text[:, 0] = START
        for row, length in zip(text, lengths):
            row[length - 1] = END
            row[length:] = PAD
        shape = (config.batch_size, config.image.size, config.image.size, 3)
        batches.append(
            {
                "image": rng.integers(0, 256, shape, dtype=np.uint8),
                "text": text,
                "image_id": np.arange(config.batch_size, dtype=np.int32),
                "skipped": np.zeros(config.batch_size, np.int32),
            }
        )
    return batches


def make_config(arguments: argparse.Namespace):
    from mvlm_jax import config as config_lib

    config = config_lib.default()
    config.image.size = arguments.image_size
    config.model = config_lib.model_size(arguments.size)
    config.batch_size = arguments.batch_size
    config.matching.group = min(config.matching.group, arguments.batch_size)
    config.dtype = arguments.dtype
    config_lib.validate(config)
    return config


class Jax:
    """The very step that training runs, on one device."""

    def __init__(self, config):
        import jax

        from mvlm_jax.data.text import TokenIds
        from mvlm_jax.tasks.pretrain import Pretrain
        from mvlm_jax.training.mesh import make_mesh, shard_batch
        from mvlm_jax.training.program import make_program

        class Tokens:
            ids = TokenIds(pad=PAD, start=START, end=END, mask=MASK, unknown=UNKNOWN)

        task = Pretrain(config=config, tokenizer=Tokens(), batches=None, eval_split=None, eval_name="")
        self.device = jax.devices()[0]
        mesh = make_mesh(data=1, fsdp=1, tensor=1, devices=[self.device])
        program = make_program(task=task, config=config, mesh=mesh)
        self._state, self._step = program.init(), program.step
        self._place = lambda batch: shard_batch(batch, program.batch_sharding)
        self._wait = jax.block_until_ready
        self.where = f"jax {jax.__version__}, {self.device.device_kind}"

    def run(self, batches: list[dict[str, np.ndarray]]) -> float:
        for batch in batches:
            self._state, metrics = self._step(self._state, self._place(batch))
        self._wait(self._state)
        return float(metrics["loss"])

    def forget_peak(self) -> None:
        reset_process_peak()

    def peak(self) -> float:
        # Of an accelerator it is the peak since the start: JAX cannot set it back.
        stats = self.device.memory_stats() if self.device.platform != "cpu" else None
        return stats["peak_bytes_in_use"] / 2**20 if stats else process_peak()


class Torch:
    """The twin; `compiled` with torch.compile over the draws and the losses, and AdamW fused in both."""

    def __init__(self, config, *, compiled: bool):
        import torch
        import torch_maskvlm
        import torch_pretraining as pretraining

        self._torch = torch
        self._cuda = torch.cuda.is_available()
        self._device = torch.device("cuda" if self._cuda else "cpu")
        if self._cuda:
            torch.set_float32_matmul_precision("high")  # TF32, as JAX multiplies float32 there
        else:
            torch.set_num_threads(len(os.sched_getaffinity(0)))
        torch.manual_seed(0)
        sizes = torch_maskvlm.Sizes(
            image_size=config.image.size, patch=config.image.patch, vocab_size=config.text.vocab_size,
            positions=config.text.positions, pad_id=PAD, text_kind=config.text.kind, width=config.model.width,
            heads=config.model.heads, layers=config.model.layers, mlp_ratio=config.model.mlp_ratio,
            cross_layers=config.model.cross_layers, decoder_layers=config.model.decoder_layers,
            projection=config.model.projection, token_head=config.model.token_head,
        )  # fmt: skip
        model = torch_maskvlm.MaskVLM(sizes).to(self._device)
        special = torch.tensor([PAD, START, END, MASK, UNKNOWN], device=self._device)
        grid = config.image.size // config.image.patch
        autocast = torch.bfloat16 if config.dtype == "bfloat16" else None
        group = config.matching.group

        def loss(image, text, image_id):
            masks = pretraining.draw_masks(text, grid=grid, special_ids=special, mask_id=MASK)
            losses = pretraining.pretraining_losses(model, image, text, image_id, masks, group=group, autocast=autocast)
            return sum(losses.values())

        self._loss = torch.compile(loss, dynamic=False) if compiled else loss
        self._options, self._steps, self._updates = config.optimizer, config.steps, 0
        self._learning_rate, self._set_rates = pretraining.learning_rate, pretraining.set_learning_rates
        self._optimizer = pretraining.make_optimizer(model, weight_decay=config.optimizer.weight_decay)
        name = torch.cuda.get_device_name() if self._cuda else "cpu"
        self.where = f"torch {torch.__version__}, {name}"

    def run(self, batches: list[dict[str, np.ndarray]]) -> float:
        for batch in batches:
            inputs = [self._torch.from_numpy(batch[name]) for name in ("image", "text", "image_id")]
            if self._cuda:
                inputs = [x.pin_memory().to(self._device, non_blocking=True) for x in inputs]
            image, text, image_id = inputs
            loss = self._loss(image, text.long(), image_id)
            self._optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self._updates += 1
            self._set_rates(self._optimizer, self._rates(self._updates))
            self._optimizer.step()
        if self._cuda:
            self._torch.cuda.synchronize()
        return loss.item()

    def _rates(self, update: int) -> dict[str, float]:
        options, common = self._options, {"steps": self._steps, "warmup_steps": self._options.warmup_steps}
        return {
            "encoder": self._learning_rate(
                update, **common, peak=options.encoder_peak, final=options.encoder_final
            ),
            "rest": self._learning_rate(update, **common, peak=options.peak, final=options.final),
        }  # fmt: skip

    def forget_peak(self) -> None:
        if self._cuda:
            self._torch.cuda.reset_peak_memory_stats()
        reset_process_peak()

    def peak(self) -> float:
        return self._torch.cuda.max_memory_allocated() / 2**20 if self._cuda else process_peak()


def reset_process_peak() -> None:
    """Sets the high-water mark back to what is resident now, where the system can (Linux)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def process_peak() -> float:
    """High-water mark of this process's resident memory in MiB."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 1024)


CONSTRUCTORS: dict[str, Callable[[Any], Any]] = {
    "jax": Jax,
    "torch_eager": lambda config: Torch(config, compiled=False),
    "torch_compiled": lambda config: Torch(config, compiled=True),
}


def serve(arguments: argparse.Namespace) -> None:
    """One contender: answers each line of standard input, which asks for a round, with a line of JSON."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever a library prints must not stand among the answers
    try:
        config = make_config(arguments)
        batches = make_batches(config)
        contender = CONSTRUCTORS[arguments.contender](config)
        started = time.perf_counter()
        contender.run(batches[:1])
        first = time.perf_counter() - started
        contender.run(batches[:1])
        contender.forget_peak()
        answers.write(json.dumps({"first_step_s": first, "where": contender.where}) + "\n")
        done = 0
        for _ in sys.stdin:
            chosen = [batches[(done + index) % BATCHES] for index in range(arguments.steps)]
            started = time.perf_counter()
            loss = contender.run(chosen)
            seconds = time.perf_counter() - started
            done += arguments.steps
            answers.write(json.dumps({"seconds": seconds, "loss": loss, "peak_mib": contender.peak()}) + "\n")
    except Exception as error:  # a contender that cannot run is a row that says so
        reason = " ".join(str(error).split())[:300]
        answers.write(json.dumps({"error": f"{type(error).__name__}: {reason}"}) + "\n")


class Contender:
    """The parent's side of a contender's process."""

    def __init__(self, name: str, arguments: argparse.Namespace):
        self.name, self.rounds = name, []
        options = [
            f"--{field}={getattr(arguments, field)}" for field in ("size", "image_size", "batch_size", "dtype", "steps")
        ]
        root = Path(__file__).resolve().parents[1]
        paths = [str(root), os.environ.get("PYTHONPATH", "")]
        # JAX would take most of an accelerator's memory at once, and leave none to the others.
        environment = os.environ | {
            "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        }
        self._process = subprocess.Popen(
            [sys.executable, __file__, f"--contender={name}", *options],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
        )  # fmt: skip
        self.start = self._answer()
        self.error = self.start.get("error")

    def round(self) -> None:
        with contextlib.suppress(BrokenPipeError):
            print(file=self._process.stdin, flush=True)
        answer = self._answer()
        self.error = answer.get("error")
        if not self.error:
            self.rounds.append(answer)

    def close(self) -> None:
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait()

    def _answer(self) -> dict[str, Any]:
        line = self._process.stdout.readline()
        return json.loads(line) if line else {"error": f"the process ended with status {self._process.wait()}"}


def accelerated() -> bool:
    """Whether torch or JAX has a GPU; asked in a process of its own, which gives the GPU back."""
    # Not an argument of JAX's alone: the parent must not hold memory of a device that it measures.
    code = "import jax; print(jax.default_backend())"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    return answer.stdout.strip() not in ("cpu", "")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=("tiny", "small", "base", "large"), help="CPU: small; GPU: base")
    parser.add_argument("--image_size", type=int, help="pixels a side; CPU: 96; GPU: 224")
    parser.add_argument("--batch_size", type=int, help="pairs; CPU: 32; GPU: 64")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="CPU: float32; GPU: bfloat16")
    parser.add_argument("--steps", type=int, help="in a round; CPU: 2; GPU: 20")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=CONTENDERS, default=CONTENDERS)
    parser.add_argument("--contender", choices=CONTENDERS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.contender is None:
        if arguments.rounds < 1:
            parser.error(f"--rounds={arguments.rounds} must be at least 1")
        names = ("size", "image_size", "batch_size", "dtype", "steps")
        values = ("base", 224, 64, "bfloat16", 20) if accelerated() else ("small", 96, 32, "float32", 2)
        for name, value in zip(names, values):
            if getattr(arguments, name) is None:
                setattr(arguments, name, value)
        if arguments.steps < 1:
            parser.error(f"--steps={arguments.steps} must be at least 1")
    return arguments


def summary(contender: Contender, arguments: argparse.Namespace) -> dict[str, Any]:
    if contender.error or not contender.rounds:
        return {"error": contender.error}
    rates = [arguments.steps * arguments.batch_size / answer["seconds"] for answer in contender.rounds]
    return {
        "pairs_per_second": statistics.median(rates),
        "slowest_round": min(rates),
        "fastest_round": max(rates),
        "peak_mib": max(answer["peak_mib"] for answer in contender.rounds),
        "first_step_s": contender.start["first_step_s"],
        "last_loss": contender.rounds[-1]["loss"],
        "where": contender.start["where"],
    }


def ratios(ours: Contender, other: Contender) -> dict[str, float]:
    """Ours over the other's, round by round (above 1: ours is faster), and of the peaks (below 1: ours needs less)."""
    speed = [theirs["seconds"] / mine["seconds"] for mine, theirs in zip(ours.rounds, other.rounds)]
    peaks = [max(answer["peak_mib"] for answer in contender.rounds) for contender in (ours, other)]
    return {"speed": statistics.median(speed), "speed_min": min(speed), "speed_max": max(speed),
            "peak_memory": peaks[0] / peaks[1]}  # fmt: skip


def main() -> None:
    arguments = parse()
    if arguments.contender:
        serve(arguments)
        return
    contenders = []
    try:
        for name in arguments.only:
            contenders.append(Contender(name, arguments))
        for index in range(arguments.rounds):
            for contender in contenders if index % 2 == 0 else contenders[::-1]:
                if not contender.error:
                    contender.round()
    finally:
        for contender in contenders:
            contender.close()

    fields = ("size", "image_size", "batch_size", "dtype", "steps", "rounds")
    result = {field: getattr(arguments, field) for field in fields}
    print(f"{'':16}{'pairs/s':>9}{'slowest':>9}{'fastest':>9}{'peak MiB':>10}{'1st step s':>12}{'loss':>8}  where")
    for contender in contenders:
        row = result[contender.name] = summary(contender, arguments)
        if row.get("error") or not contender.rounds:
            print(f"{contender.name:16}not measured: {row['error']}")
            continue
        print(
            f"{contender.name:16}{row['pairs_per_second']:9.2f}{row['slowest_round']:9.2f}{row['fastest_round']:9.2f}"
            f"{row['peak_mib']:10.0f}{row['first_step_s']:12.1f}{row['last_loss']:8.3f}  {row['where']}"
        )
    by_name = {contender.name: contender for contender in contenders if contender.rounds and not contender.error}
    if "jax" in by_name:
        for name in by_name.keys() - {"jax"}:
            of = result[f"jax/{name}"] = ratios(by_name["jax"], by_name[name])
            print(
                f"jax / {name}: speed {of['speed']:.3f} ({of['speed_min']:.3f} to {of['speed_max']:.3f}), "
                f"peak memory {of['peak_memory']:.3f}"
            )
    print(json.dumps(result))


if __name__ == "__main__":
    main()
