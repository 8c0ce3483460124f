import json

from mvlm_jax.training.metrics_log import MetricsLog, read_metrics


def test_a_resumed_log_drops_the_lines_after_its_step(tmp_path):
    with MetricsLog(tmp_path, resumed_step=0) as log:
        for step in (1, 2, 3):
            log.write(step, {"loss": step / 2}, timing={"seconds": 1.0})
    with MetricsLog(tmp_path, resumed_step=2) as log:
        log.write(3, {"loss": 9.0})
    assert list(read_metrics(tmp_path / "metrics.jsonl")) == [
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
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {"step": 1, "loss": None}


def test_the_numbers_of_an_evaluation_are_logged_and_it_is_remembered_across_starts(tmp_path):
    with MetricsLog(tmp_path, resumed_step=0) as log:
        log.write(4, {"loss": 0.5})
        log.write_evaluation(4, {"retrieval-val": {"recall": 0.25, "pairs": 3, "ci": [0.1, 0.2], "ok": True}})
    with MetricsLog(tmp_path, resumed_step=4) as log:
        assert log.has_evaluation(4)
        assert not log.has_evaluation(3)
    assert list(read_metrics(tmp_path / "metrics.jsonl"))[-1] == {
        "step": 4,
        "eval/retrieval-val/recall": 0.25,
        "eval/retrieval-val/pairs": 3,
    }
    with MetricsLog(tmp_path, resumed_step=3) as log:
        assert not log.has_evaluation(4)


def test_a_process_that_does_not_write_reads_the_same_log(tmp_path):
    with MetricsLog(tmp_path, resumed_step=0) as log:
        log.write_evaluation(4, {"val": {"recall": 0.25}})
    before = sorted(tmp_path.iterdir())
    with MetricsLog(tmp_path, resumed_step=4, writes=False) as log:
        assert log.has_evaluation(4)
        log.write(5, {"loss": 1.0})
    assert sorted(tmp_path.iterdir()) == before
    assert len(list(read_metrics(tmp_path / "metrics.jsonl"))) == 1
