"""The checkpoints of a run."""

from pathlib import Path

import orbax.checkpoint as ocp
from jaxtyping import PyTree
from orbax.checkpoint import checkpoint_managers as policies

from mvlm_jax.errors import UserError
from mvlm_jax.training.state import TrainState


class Checkpoints:
    """A directory of steps, each there whole or not at all.

    Parameters are stored apart from the optimizer's state, so that an evaluation reads a third of the bytes.
    """

    def __init__(self, directory: Path, *, keep_last: int, keep_every: int):
        """Opens for writing; `keep_every` also keeps each step that is a multiple, 0 none."""
        keep = [policies.LatestN(keep_last)] + ([policies.EveryNSteps(keep_every)] if keep_every else [])
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policies.AnyPreservationPolicy(keep),
            cleanup_tmp_directories=True,  # what a killed run left half-written
        )
        self._open(directory, options)

    @classmethod
    def for_reading(cls, directory: Path) -> "Checkpoints":
        """Opens without touching anything, also while another process writes."""
        self = cls.__new__(cls)
        self._open(directory, ocp.CheckpointManagerOptions(read_only=True, save_interval_steps=0, create=False))
        return self

    def _open(self, directory: Path, options: ocp.CheckpointManagerOptions) -> None:
        self._directory = Path(directory).absolute()
        self._manager = ocp.CheckpointManager(self._directory, options=options, item_names=("params", "optimizer"))

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_) -> None:
        self._manager.close()

    def steps(self) -> list[int]:
        return sorted(self._manager.all_steps())

    def latest_step(self) -> int | None:
        return self._manager.latest_step()

    def save(self, step: int, state: TrainState) -> None:
        """Returns once the arrays are copied; they are written in the background."""
        self._manager.save(
            step,
            args=ocp.args.Composite(
                params=ocp.args.StandardSave(state.params),
                optimizer=ocp.args.StandardSave({"opt_state": state.opt_state, "step": state.step}),
            ),
        )

    def restore(self, step: int, abstract: TrainState) -> TrainState:
        """The state of a step, on the shardings of `abstract`.

        Raises:
          UserError: there is no checkpoint of that step.
        """
        self._check(step)
        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(
                params=ocp.args.StandardRestore(abstract.params),
                optimizer=ocp.args.StandardRestore({"opt_state": abstract.opt_state, "step": abstract.step}),
            ),
        )
        return TrainState(params=restored.params, **restored.optimizer)

    def restore_params(self, step: int, abstract: PyTree) -> PyTree:
        """The parameters alone, on the shardings of `abstract`.

        Raises:
          UserError: there is no checkpoint of that step.
        """
        self._check(step)
        return self._manager.restore(step, args=ocp.args.Composite(params=ocp.args.StandardRestore(abstract))).params

    def _check(self, step: int) -> None:
        steps = self.steps()
        if step not in steps:
            there_are = f"there are {', '.join(map(str, steps))}" if steps else "there is none yet"
            raise UserError(f"no checkpoint of step {step} in {self._directory}; {there_are}")
