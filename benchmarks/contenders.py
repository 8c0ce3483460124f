"""The training steps that `step.py` measures: ours, and that of the PyTorch reference."""

import contextlib
import dataclasses
import functools
import hashlib
import os
import resource
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Mapping
from concurrent import futures
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from processes import NotHere

from mvlm_jax import config as config_lib
from mvlm_jax.allocator import release_free_memory
from mvlm_jax.data.text import TokenIds, train_tokenizer
from mvlm_jax.errors import UserError
from mvlm_jax.interop.families import text_family

BATCHES = 4  # kept on the host and used in turn
_SIZES = ("width", "heads", "layers", "mlp_ratio")
# What the PyTorch reference takes from a config; other fields of the model and the step it has at their defaults.
REFERENCE_FIELDS = frozenset(
    "image.size image.mean image.std text.max_length batch_size steps dtype matching.group model.projection "
    "model.token_head image_encoder.patch image_encoder.pooling text_encoder.kind text_encoder.vocab_size "
    "text_encoder.positions text_encoder.pooling cross.decoder_layers optimizer.warmup_steps optimizer.weight_decay "
    "optimizer.peak optimizer.final optimizer.image_encoder_peak optimizer.image_encoder_final "
    "optimizer.text_encoder_peak optimizer.text_encoder_final".split()
) | {f"{part}.{field}" for part in config_lib.PARTS for field in _SIZES}


@dataclasses.dataclass(frozen=True)
class Setup:
    """The step that every contender runs."""

    size: str
    image_size: int
    batch_size: int
    dtype: str
    steps: int  # in a round

    def config(self) -> ConfigDict:
        config = config_lib.default()
        config.image.size = self.image_size
        config.update(config_lib.model_size(self.size))
        config.batch_size = self.batch_size
        config.matching.group = min(config.matching.group, self.batch_size)
        config.dtype = self.dtype
        return config


def special_tokens(config: ConfigDict) -> TokenIds:
    kind = text_family(config.text_encoder.kind).tokenizer
    return train_tokenizer(["a caption"], kind=kind, vocab_size=config.text_encoder.vocab_size).ids


def check_reference(config: ConfigDict, *, text_kinds: Collection[str]) -> None:
    """
    Args:
      text_kinds: of text encoders that the PyTorch reference has.

    Raises:
      UserError: the reference would be another model or another step than this config describes.
    """
    if config.text_encoder.kind not in text_kinds:
        raise UserError(
            f"config.text_encoder.kind={config.text_encoder.kind!r}; the PyTorch reference has {', '.join(text_kinds)}"
        )
    default = dict(config_lib.flatten(config_lib.default()))
    for name, value in config_lib.flatten(config):
        free = name in REFERENCE_FIELDS or name.startswith(config_lib.CHANGEABLE_ON_RESUME)
        if not free and value != default[name]:
            raise UserError(f"config.{name}={value!r}; the PyTorch reference has {default[name]!r} alone")


def reference_model(config: ConfigDict) -> Any:
    """The PyTorch reference with random parameters, the same ones each time.

    Raises:
      UserError: as `check_reference`.
    """
    import torch
    import torch_maskvlm

    check_reference(config, text_kinds=torch_maskvlm.FIRST_POSITION)
    torch.manual_seed(0)
    parts = {name: torch_maskvlm.Part(**{field: config[name][field] for field in _SIZES}) for name in config_lib.PARTS}
    sizes = torch_maskvlm.Sizes(
        image_size=config.image.size, patch=config.image_encoder.patch,
        mean=config.image.mean, std=config.image.std, vocab_size=config.text_encoder.vocab_size,
        positions=config.text_encoder.positions, pad_id=special_tokens(config).pad, text_kind=config.text_encoder.kind,
        **parts, decoder_layers=config.cross.decoder_layers,
        projection=config.model.projection, token_head=config.model.token_head,
        image_pooling=config.image_encoder.pooling, text_pooling=config.text_encoder.pooling,
    )  # fmt: skip
    return torch_maskvlm.MaskVLM(sizes)


def make_batches(config: ConfigDict) -> list[dict[str, np.ndarray]]:
    """Noise in place of images, captions of 4 to 25 tokens (a few at full length), and a new image id in each pair."""
    ids, rng = special_tokens(config), np.random.default_rng(0)
    batches = []
    for _ in range(BATCHES):
        rows, length = config.batch_size, config.text.max_length
        text = rng.integers(len(ids), config.text_encoder.vocab_size, (rows, length), dtype=np.int32)
        lengths = np.minimum(rng.poisson(13, rows) + 3, length)
        text[:, 0] = ids.start
        for row, end in zip(text, lengths):
            row[end - 1] = ids.end
            row[end:] = ids.pad
        batches.append(
            {
                "image": rng.integers(0, 256, (rows, config.image.size, config.image.size, 3), dtype=np.uint8),
                "text": text,
                "image_id": np.arange(rows, dtype=np.int32),
                "skipped": np.zeros(rows, np.int32),
            }
        )
    return batches


@dataclasses.dataclass(frozen=True)
class CompiledStep:
    task: Any
    program: Any
    mesh: Any
    run: Any  # (state, batch) -> (state, metrics)
    seconds: float


class Jax:
    """The very step that training runs, on one device. Each variant is compiled once and can be prepared again."""

    def __init__(self, setup: Setup):
        import jax

        self._jax, self._setup = jax, setup
        self._device = jax.devices()[0]
        self._compiled: dict[str, futures.Future[CompiledStep]] = {}
        self._executables: dict[tuple[str, ...], futures.Future[Any]] = {}
        self._tracing, self._sharing = threading.Lock(), threading.Lock()
        self._state = self._step = None

    def compile(self, variants: list[Mapping[str, Any]]) -> dict[str, Any]:
        """Begins to compile the steps of all these variants at the same time, and does not wait for them."""
        pool = futures.ThreadPoolExecutor(max_workers=len(variants))
        for fields in variants:
            key = _key(fields)
            if key not in self._compiled:
                self._compiled[key] = pool.submit(self._compile, fields)
        return {"compiling": len(variants)}

    def compiled(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """Whether `prepare` would have to wait for the compiler, and the seconds that it took."""
        future = self._compiled[_key(fields)]
        done = future.done()
        return {"done": done, "seconds": future.result().seconds if done and not future.exception() else None}

    def prepare(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """Compiles the step with other values for these config fields, and runs it for the first time.

        A field `xla:NAME` is an option of the compiler.
        """
        self._state = self._step = None  # frees its memory for the next one
        key = _key(fields)
        if key not in self._compiled:
            self._compiled[key] = futures.Future()
            _settle(self._compiled[key], lambda: self._compile(fields))
        step = self._compiled[key].result()
        self._batches = make_batches(self._config(fields))
        self._place = functools.partial(_placed, sharding=step.program.batch_sharding)
        started = time.perf_counter()
        with self._jax.set_mesh(step.mesh):
            self._state = step.program.init()
        self._step = step.run
        self.run(1)
        seconds = step.seconds + time.perf_counter() - started
        self.run(1)
        reset_process_peak()
        memory = self._step.memory_analysis()
        return {
            "first_step_s": seconds,
            "where": f"jax {self._jax.__version__}, {self._device.device_kind}",
            "compiler_mib": (memory.argument_size_in_bytes + memory.temp_size_in_bytes) / 2**20 if memory else None,
            "tflop": step.task.flops_per_step / 1e12,
            "compute": str(step.task.model.compute),
        }

    def run(self, steps: int) -> dict[str, Any]:
        started = time.perf_counter()
        for index in range(steps):
            self._state, metrics = self._step(self._state, self._place(self._batches[index % BATCHES]))
        self._jax.block_until_ready(self._state)
        return {"seconds": time.perf_counter() - started, "loss": float(metrics["loss"]), "peak_mib": self._peak()}

    def trace(self, steps: int) -> dict[str, Any]:
        """The device's time by kind of kernel, and by part of the model where the profile names the operations."""
        import kernels

        with tempfile.TemporaryDirectory() as directory:
            with self._jax.profiler.trace(directory):
                seconds = self.run(steps)["seconds"]
            profile = kernels.read_profile(Path(directory))
        return kernels.summary(profile, text=self._step.as_text(), steps=steps) | {"wall_ms": 1000 * seconds / steps}

    def _config(self, fields: Mapping[str, Any]) -> ConfigDict:
        config = self._setup.config()
        config.update_from_flattened_dict({name: v for name, v in fields.items() if not name.startswith("xla:")})
        return config

    def _compile(self, fields: Mapping[str, Any]) -> CompiledStep:
        """
        Raises:
          UserError: the config refuses a value.
          NotHere: the device lacks what the config asks for.
        """
        from mvlm_jax.models.compute import check_attention
        from mvlm_jax.tasks.registry import describe_task, validate
        from mvlm_jax.training.mesh import make_mesh
        from mvlm_jax.training.program import make_program

        config = self._config(fields)
        validate(config)
        options = {name.removeprefix("xla:"): v for name, v in fields.items() if name.startswith("xla:")}
        started = time.perf_counter()
        with self._tracing:  # in Python, so several at once would only disturb each other
            task = describe_task(config)
            try:
                check_attention(task.model.compute, platform=self._device.platform)
            except UserError as error:
                raise NotHere(f"not on this backend: {error}") from error
            mesh = make_mesh(data=1, fsdp=1, tensor=1, devices=[self._device])
            program = make_program(task=task, config=config, mesh=mesh)
            with self._jax.set_mesh(mesh):
                batch = {
                    name: self._jax.ShapeDtypeStruct(rows.shape, rows.dtype, sharding=program.batch_sharding)
                    for name, rows in task.batch_shapes.items()
                }
                lowered = program.step.lower(program.state, batch)
        with self._jax.set_mesh(mesh):
            step = self._executable(lowered, options)
        release_free_memory()  # as training does
        return CompiledStep(task, program, mesh, step, time.perf_counter() - started)

    def _executable(self, lowered: Any, options: Mapping[str, Any]) -> Any:
        """The compiled program; what several settings mean may be the same one, which is compiled once for all."""
        key = (hashlib.sha256(lowered.as_text().encode()).hexdigest(), _key(options))
        with self._sharing:
            first = key not in self._executables
            future = self._executables.setdefault(key, futures.Future())
        if first:
            _settle(future, lambda: lowered.compile(compiler_options=dict(options) or None))
        return future.result()

    def matrix_peak(self) -> dict[str, Any]:
        """TFLOP/s of one large product of bfloat16 matrices, which is what the device's matrix unit can reach."""
        jnp, side, times = self._jax.numpy, 8192, []
        keys = self._jax.random.split(self._jax.random.key(0))
        a, b = (self._jax.random.normal(key, (side, side), jnp.bfloat16) for key in keys)
        product = self._jax.jit(lambda a, b: a @ b)
        self._jax.block_until_ready(product(a, b))
        for _ in range(5):
            started = time.perf_counter()
            for _ in range(10):
                c = product(a, b)
            c.block_until_ready()
            times.append((time.perf_counter() - started) / 10)
        return {"tflops": 2 * side**3 / min(times) / 1e12}

    def _peak(self) -> float:
        # On an accelerator the peak is since the start: JAX cannot reset it.
        stats = self._device.memory_stats() if self._device.platform != "cpu" else None
        return stats["peak_bytes_in_use"] / 2**20 if stats else process_peak()


def _key(fields: Mapping[str, Any]) -> str:
    return repr(sorted(fields.items()))


def _settle(future: futures.Future[Any], make: Callable[[], Any]) -> None:
    """Gives a future what `make` returns, or raises to those who wait for it."""
    try:
        future.set_result(make())
    except Exception as error:
        future.set_exception(error)


def _placed(batch: dict[str, np.ndarray], *, sharding: Any) -> dict[str, Any]:
    from mvlm_jax.training.mesh import shard_batch

    return shard_batch(batch, sharding)


class Torch:
    """The PyTorch reference. `compiled`: torch.compile of the masks and the losses. AdamW is fused either way."""

    def __init__(self, setup: Setup, *, compiled: bool):
        import torch

        self._torch, self._setup, self._compiled = torch, setup, compiled
        self._cuda = torch.cuda.is_available()
        self._device = torch.device("cuda" if self._cuda else "cpu")
        if self._cuda:
            torch.set_float32_matmul_precision("high")  # TF32, as JAX multiplies float32 there
        else:
            torch.set_num_threads(len(os.sched_getaffinity(0)))

    def prepare(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        import torch_pretraining as pretraining

        torch, config = self._torch, self._setup.config()
        config.update_from_flattened_dict(fields)
        self._batches = make_batches(config)
        ids = special_tokens(config)
        model = reference_model(config).to(self._device)
        special = torch.tensor(tuple(ids), device=self._device)
        grid = config.image.size // config.image_encoder.patch
        autocast = torch.bfloat16 if config.dtype == "bfloat16" else None
        group = config.matching.group

        def loss(image, text, image_id):
            masks = pretraining.draw_masks(text, grid=grid, special_ids=special, mask_id=ids.mask)
            losses = pretraining.pretraining_losses(model, image, text, image_id, masks, group=group, autocast=autocast)
            return sum(losses.values())

        self._loss = torch.compile(loss, dynamic=False) if self._compiled else loss
        self._options, self._steps, self._updates = config.optimizer, config.steps, 0
        self._learning_rate, self._set_rates = pretraining.learning_rate, pretraining.set_learning_rates
        self._optimizer = pretraining.make_optimizer(model, weight_decay=config.optimizer.weight_decay)
        started = time.perf_counter()
        self.run(1)
        seconds = time.perf_counter() - started
        self.run(1)
        if self._cuda:
            torch.cuda.reset_peak_memory_stats()
        reset_process_peak()
        name = torch.cuda.get_device_name() if self._cuda else "cpu"
        return {"first_step_s": seconds, "where": f"torch {torch.__version__}, {name}"}

    def run(self, steps: int) -> dict[str, Any]:
        started = time.perf_counter()
        for index in range(steps):
            batch = self._batches[index % BATCHES]
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
        seconds = time.perf_counter() - started
        peak = self._torch.cuda.max_memory_allocated() / 2**20 if self._cuda else process_peak()
        return {"seconds": seconds, "loss": loss.item(), "peak_mib": peak}

    def _rates(self, update: int) -> dict[str, float]:
        options, common = self._options, {"steps": self._steps, "warmup_steps": self._options.warmup_steps}
        ends = {
            "image_encoder": (options.image_encoder_peak, options.image_encoder_final),
            "text_encoder": (options.text_encoder_peak, options.text_encoder_final),
            "rest": (options.peak, options.final),
        }
        return {
            group: self._learning_rate(update, **common, peak=peak, final=final)
            for group, (peak, final) in ends.items()
        }


def reset_process_peak() -> None:
    """Resets the high-water mark of resident memory, on Linux, after what was freed while preparing is given back."""
    release_free_memory()
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


CONSTRUCTORS: dict[str, Callable[[Setup], Any]] = {
    "jax": Jax,
    "torch_eager": lambda setup: Torch(setup, compiled=False),
    "torch_compiled": lambda setup: Torch(setup, compiled=True),
}
