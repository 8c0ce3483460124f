import json
import math
import time

import numpy as np
import pytest

from mvlm_jax.training.metrics_log import MetricsLog, grouped, read_metrics, scalars
from mvlm_jax.training.tracker import Tracker


def logged_lines(directory):
    """Without the time of each line, which is none of a test's business."""
    return [{k: v for k, v in line.items() if k != "time"} for line in read_metrics(directory / "metrics.jsonl")]


class Curves(Tracker):
    def __init__(self):
        self.values = []

    def log(self, step, values):
        self.values.append((step, dict(values)))


def test_a_resumed_log_drops_the_lines_after_its_step(tmp_path):
    with MetricsLog(tmp_path, resumed_step=0) as log:
        for step in (1, 2, 3):
            log.write(step, {"loss": step / 2}, timing={"seconds": 1.0})
    with MetricsLog(tmp_path, resumed_step=2) as log:
        log.write(3, {"loss": 9.0})
    assert logged_lines(tmp_path) == [
        {"step": 1, "loss": 0.5, "timing": {"seconds": 1.0}},
        {"step": 2, "loss": 1.0, "timing": {"seconds": 1.0}},
        {"step": 3, "loss": 9.0},
    ]


def test_a_line_cut_short_by_a_crash_is_dropped(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 0.5}\n{"step": 2, "lo')
    with MetricsLog(tmp_path, resumed_step=2) as log:
        log.write(3, {"loss": 1.5})
    assert [line["step"] for line in read_metrics(tmp_path / "metrics.jsonl")] == [1, 3]


def test_lines_are_on_disk_before_the_run_ends(tmp_path):
    with MetricsLog(tmp_path, resumed_step=0) as log:
        log.write(1, {"loss": 0.5})
        assert len(list(read_metrics(tmp_path / "metrics.jsonl"))) == 1


def test_a_loss_that_is_not_finite_is_null_in_strict_json(tmp_path):
    with MetricsLog(tmp_path, resumed_step=0) as log:
        log.write(1, {"loss": float("nan")})
    assert logged_lines(tmp_path) == [{"step": 1, "loss": None}]


def test_a_line_has_the_time_at_which_it_was_written(tmp_path):
    before = time.time()
    with MetricsLog(tmp_path, resumed_step=0) as log:
        log.write(1, {"loss": 0.5})
    line = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert before - 0.001 <= line["time"] <= time.time() + 0.001


def test_every_number_of_an_evaluation_is_logged_and_it_is_remembered_across_starts(tmp_path):
    metrics = {
        "recall": 0.25,
        "pairs": np.int64(3),
        "mlm_gain": [0.5, -0.25, 1.5],
        "left_out": {"corrupt": 2},
        "skipped_images": 2,
        "complete": True,
        "note": "a text",
        "templates": ["two", "texts"],
        "mim_gain": [float("nan"), 0.0, None],
    }
    curves = Curves()
    with MetricsLog(tmp_path, resumed_step=0) as log:
        log.track(curves, losses=())
        log.write(4, {"loss": 0.5})
        log.write_evaluation(4, {"retrieval-val": metrics})
    with MetricsLog(tmp_path, resumed_step=4) as log:
        assert log.has_evaluation(4)
        assert not log.has_evaluation(3)
        assert not log.has_evaluation(4, ema=True)
    logged = {
        "recall": 0.25,
        "pairs": 3,
        "mlm_gain": 0.5,
        "mlm_gain_low": -0.25,
        "mlm_gain_high": 1.5,
        "left_out/corrupt": 2,
        "skipped_images": 2,
        "complete": 1,
        "mim_gain": None,
        "mim_gain_low": 0.0,
        "mim_gain_high": None,
    }
    line = {"step": 4} | {f"eval/retrieval-val/{name}": value for name, value in logged.items()}
    assert logged_lines(tmp_path)[-1] == line
    assert curves.values[0] == (4, {"loss/total": 0.5})
    step, evaluated = curves.values[1]
    assert step == 4 and list(evaluated) == [name for name in line if name != "step"]
    numbers = [math.nan if value is None else value for value in logged.values()]
    np.testing.assert_array_equal(list(evaluated.values()), numbers)
    with MetricsLog(tmp_path, resumed_step=3) as log:
        assert not log.has_evaluation(4)


def test_trackers_get_every_value_in_a_group_of_its_kind(tmp_path):
    curves = Curves()
    metrics = {"loss": 3.0, "mim": 1.0, "mlm_accuracy": 20.0, "grad_norm": 2.0, "learning_rate/rest": 0.1}
    with MetricsLog(tmp_path, resumed_step=0) as log:
        log.track(curves, losses=("mim",))
        log.write(1, metrics, timing={"mfu": 0.5})
    groups = {"loss/total": 3.0, "loss/mim": 1.0, "train/mlm_accuracy": 20.0, "gradient/norm": 2.0, "rate/rest": 0.1}
    assert curves.values == [(1, groups | {"throughput/mfu": 0.5})]
    assert grouped({"eval/val/r1": 1, "skipped_updates": 0}) == {"eval/val/r1": 1, "gradient/skipped_updates": 0}


@pytest.mark.parametrize("value", [[1.0, 2.0], np.zeros(2), [1.0, 2.0, "a text"], b"bytes"])
def test_a_metric_that_is_no_curve_is_refused_by_name_instead_of_being_dropped(value):
    with pytest.raises(TypeError, match="the metric eval/val/norms is "):
        dict(scalars({"eval/val": {"norms": value}}))


def test_a_process_that_does_not_write_reads_the_same_log(tmp_path):
    with MetricsLog(tmp_path, resumed_step=0) as log:
        log.write_evaluation(4, {"val": {"recall": 0.25}})
    before = sorted(tmp_path.iterdir())
    with MetricsLog(tmp_path, resumed_step=4, writes=False) as log:
        assert log.has_evaluation(4)
        log.write(5, {"loss": 1.0})
    assert sorted(tmp_path.iterdir()) == before
    assert len(list(read_metrics(tmp_path / "metrics.jsonl"))) == 1
