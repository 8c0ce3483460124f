import pytest

from mvlm_jax.training.throughput import Throughput, peak_flops, progress_words


def throughput(*, times, kind="TPU v5 lite"):
    times = iter(times)
    return Throughput(
        steps=100,
        batch_size=64,
        flops_per_step=197e12,
        device_kind=kind,
        device_count=2,
        clock=lambda: next(times),
    )


@pytest.mark.parametrize(
    ("kind", "tera"),
    [
        ("TPU v4", 275),
        ("TPU v5 lite", 197),
        ("TPU v5p", 459),
        ("TPU v5", 459),
        ("TPU v6 lite", 918),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H200", 989),
    ],
)
def test_known_devices_have_a_peak(kind, tera):
    assert peak_flops(kind) == tera * 1e12


@pytest.mark.parametrize("kind", ["cpu", "NVIDIA H20", "Tesla T4"])
def test_unknown_devices_have_none(kind):
    assert peak_flops(kind) is None


def test_rates_are_taken_over_the_steps_since_the_last_report():
    timer = throughput(times=[10.0, 12.0, 20.0])
    timer.restart(1)
    # 4 steps in 2 s: half a second each, just what the two devices at their peak would need.
    expected = {"seconds_per_step": 0.5, "pairs_per_second": 128.0, "seconds_left": 47.5, "mfu": 1.0}
    assert timer.report(5) == pytest.approx(expected)
    assert timer.report(13)["seconds_per_step"] == pytest.approx(1.0)


def test_nothing_is_reported_before_a_whole_step_is_timed():
    timer = throughput(times=[1.0, 2.0, 3.0])
    assert timer.report(1) == {}
    timer.restart(1)
    assert timer.report(1) == {}


def test_unknown_devices_report_no_mfu():
    timer = throughput(times=[0.0, 1.0], kind="cpu")
    timer.restart(0)
    assert "mfu" not in timer.report(1)


def test_progress_is_told_by_losses_gradient_rates_and_speed():
    timing = {"pairs_per_second": 123.456, "seconds_left": 3723.4, "mfu": 0.4567}
    rates = {"learning_rate/image_encoder": 1e-5, "learning_rate/rest": 0.0003}
    metrics = {"examples": 8.0, "grad_norm": 3.14159, "itc": 0.5, **rates, "loss": 1.23456}
    assert progress_words(metrics=metrics, timing=timing) == (
        "loss 1.235  itc 0.5  grad_norm 3.142  lr/image_encoder 1e-05  lr/rest 0.0003  "
        "123.5 pairs/s  ETA 1:02:03  MFU 45.7%"
    )
    same = metrics | {"learning_rate/image_encoder": 0.0003}
    assert progress_words(metrics=same, timing={}) == "loss 1.235  itc 0.5  grad_norm 3.142  lr 0.0003"
