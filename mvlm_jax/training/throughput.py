"""How fast a run goes."""

import datetime
import time
from collections.abc import Callable

# Peak dense bfloat16 FLOP/s of a device, from the vendors' data sheets, by the longest prefix of `device_kind`.
PEAK_FLOPS = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5p": 459e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
}

RATE = "learning_rate/"


def peak_flops(device_kind: str) -> float | None:
    """None for a device that is not in the table."""
    known = [name for name in PEAK_FLOPS if device_kind.startswith(name)]
    return PEAK_FLOPS[max(known, key=len)] if known else None


class Throughput:
    """Rates over the steps since the last report; compilation, evaluations and pauses are left out by `restart`."""

    def __init__(
        self,
        *,
        steps: int,
        batch_size: int,
        flops_per_step: float,
        device_kind: str,
        device_count: int,
        clock: Callable[[], float] = time.perf_counter,
    ):
        peak = peak_flops(device_kind)
        self._steps = steps
        self._batch_size = batch_size
        self._mfu_seconds = flops_per_step / (peak * device_count) if peak else None
        self._clock = clock
        self._since: tuple[int, float] | None = None

    def restart(self, step: int) -> None:
        self._since = (step, self._clock())

    def report(self, step: int) -> dict[str, float]:
        """Empty where no whole step has been timed. `mfu` is a fraction of 1, seconds are wall-clock time."""
        since, now = self._since, self._clock()
        self._since = (step, now)
        if since is None or since[0] == step or since[1] == now:
            return {}
        seconds = (now - since[1]) / (step - since[0])
        rates = {
            "seconds_per_step": seconds,
            "pairs_per_second": self._batch_size / seconds,
            "seconds_left": seconds * (self._steps - step),
        }
        return rates if self._mfu_seconds is None else rates | {"mfu": self._mfu_seconds / seconds}


def progress_words(*, metrics: dict[str, float], timing: dict[str, float]) -> str:
    """Losses and other metrics, the norm of the gradient, the learning rates, and how fast it goes."""
    left_out = ("loss", "grad_norm", "examples")
    names = [name for name in metrics if name not in left_out and not name.startswith(RATE)]
    words = [f"{name} {metrics[name]:.4g}" for name in ("loss", *names) if name in metrics]
    if "grad_norm" in metrics:
        words.append(f"grad_norm {metrics['grad_norm']:.4g}")
    rates = {name.removeprefix(RATE): f"{metrics[name]:.3g}" for name in metrics if name.startswith(RATE)}
    if len(set(rates.values())) == 1:
        words.append(f"lr {next(iter(rates.values()))}")
    else:
        words += [f"lr/{group} {rate}" for group, rate in rates.items()]
    if timing:
        words.append(f"{timing['pairs_per_second']:.4g} pairs/s")
        words.append(f"ETA {datetime.timedelta(seconds=round(timing['seconds_left']))}")
    if "mfu" in timing:
        words.append(f"MFU {timing['mfu']:.1%}")
    return "  ".join(words)
