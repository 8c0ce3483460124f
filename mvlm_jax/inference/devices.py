"""The device and the type that a loaded model computes with."""

from typing import Any

import jax

from mvlm_jax.errors import UserError
from mvlm_jax.inference.images import described


def find_device(device: Any) -> jax.Device:
    """
    Args:
      device: cpu, gpu or tpu, the same with a number as in gpu:1, or a device of JAX; None: JAX's default.

    Raises:
      UserError: this process has no such device.
    """
    if device is None:
        return jax.local_devices()[0]
    if isinstance(device, jax.Device):
        return device
    if not isinstance(device, str):
        raise UserError(f"device is {described(device)}; give a name such as {_names()}")
    platform, _, number = device.partition(":")
    try:
        return jax.local_devices(backend=platform or "none")[int(number or 0)]
    except (RuntimeError, IndexError, ValueError) as error:
        raise UserError(f"device={device!r:.60} is not here; there is {_names()}") from error


def _names() -> str:
    found = [*jax.local_devices()]
    try:
        found += jax.local_devices(backend="cpu")
    except RuntimeError:  # the process was told to use others alone
        pass
    return ", ".join(dict.fromkeys(f"{each.platform}:{place}" for place, each in enumerate(found)))
