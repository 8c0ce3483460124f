"""Weights & Biases as a tracker. wandb is an extra, and is imported only where a run asks for it."""

from collections.abc import Mapping

from mvlm_jax.training.tracker import Examples, TrackedRun, Tracker


class WeightsAndBiases(Tracker):
    """`WANDB_MODE=offline` keeps everything in DIR/wandb, from where `wandb sync` uploads it."""

    def __init__(self, run: TrackedRun, *, project: str):
        import wandb

        self._wandb = wandb
        self._run = wandb.init(
            project=project,
            id=run.identity,
            name=run.directory.name,
            dir=str(run.directory),
            resume="allow",
            config={**run.config, "environment": dict(run.environment)},
            # It would else replace stdout and stderr, on which the progress bar is drawn.
            settings=wandb.Settings(console="off"),
        )
        # The steps of a run that goes on from an earlier checkpoint come again; by itself wandb drops them.
        self._run.define_metric("*", step_metric="step")

    def log(self, step: int, values: Mapping[str, float | int]) -> None:
        self._run.log({"step": step, **values})

    def show(self, step: int, examples: Examples) -> None:
        images = {name: self._wandb.Image(image) for name, image in examples.images.items()}
        texts = {name: self._wandb.Html(f"<pre>{_escaped(text)}</pre>") for name, text in examples.texts.items()}
        self._run.log({"step": step, **images, **texts})

    def close(self) -> None:
        self._run.finish()


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;")
