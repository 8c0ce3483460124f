"""FLOPs of a compiled training step for several numbers of trained layers of the image encoder.

It compiles the recipe `flickr8k:published` for one CPU device and runs nothing. Each row has the FLOPs of the step, how
far they are below those of the first row, and the same difference of the FLOPs that utilisation counts.

Example:
  python benchmarks/frozen.py --batch_size=32 --trained_layers -1 4 1 0
"""

import argparse
import sys
from collections.abc import Sequence

import jax

from mvlm_jax.aot.ahead import describe_step
from mvlm_jax.configs import flickr8k


def step_flops(*, batch_size: int, trained_layers: int, **fields) -> tuple[float, float]:
    """(compiled, counted) of one step; `fields` are other fields of the config, their dots as `__`."""
    config = flickr8k.get_config("published")
    config.update_from_flattened_dict({name.replace("__", "."): value for name, value in fields.items()})
    config.batch_size = config.matching.group = batch_size
    config.image_encoder.trained_layers = trained_layers
    config.mesh.data = 1
    config.dtype = "float32"
    # The analysis counts the body of a loop once.
    config.model.layer_loop = "unroll"
    described = describe_step(config, jax.devices()[:1])
    with jax.set_mesh(described.mesh):
        compiled = described.program.step.lower(described.program.state, described.batch).compile()
    return compiled.cost_analysis()["flops"], described.task.flops_per_step


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--trained_layers", type=int, nargs="+", default=[-1, 4, 1, 0])
    arguments = parser.parse_args(argv)
    print("trained  compiled   below      counted below")
    first = None
    for trained in arguments.trained_layers:
        flops = step_flops(batch_size=arguments.batch_size, trained_layers=trained)
        first = first or flops
        print(f"{trained:7d}  {flops[0]:.3e}  {first[0] - flops[0]:.3e}  {first[1] - flops[1]:.3e}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
