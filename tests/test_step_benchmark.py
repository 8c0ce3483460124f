import gzip
import json
import sys
from pathlib import Path

import pytest

from mvlm_jax.errors import UserError

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
TOY = ("--size=tiny", "--image_size=32", "--batch_size=4", "--dtype=float32", "--steps=1", "--rounds=2")


@pytest.fixture(autouse=True)
def beside_the_benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    for name in ("step", "contenders", "kernels"):
        monkeypatch.delitem(sys.modules, name, raising=False)


def rows_of(file):
    return {row["name"]: row for row in map(json.loads, file.read_text().splitlines())}


def test_variants_are_rows_as_they_come_and_one_that_cannot_run_is_a_failure(tmp_path, capsys):
    import step

    file = tmp_path / "rows.jsonl"
    variants = (
        "--variants",
        "full:model.remat=full,image_encoder.layers=1,text_encoder.layers=1,cross.layers=1,text_encoder.vocab_size=300",
        "fused:model.attention=cudnn",
    )
    assert step.main(["--only", "jax", *TOY, *variants, f"--json={file}"]) == 1
    rows, printed = rows_of(file), capsys.readouterr().out
    assert len(rows["full"]["seconds"]) == 2 and rows["full"]["loss"] > 0 and "remat='full'" in rows["full"]["compute"]
    assert "needs an NVIDIA GPU" in rows["fused"]["error"]
    assert "full" in printed and "fused               not measured: UserError" in printed


def test_nothing_is_begun_after_the_deadline(tmp_path, capsys):
    import step

    assert step.main(["--only", "jax", *TOY, "--deadline=0", f"--json={tmp_path / 'rows.jsonl'}"]) == 1
    assert "jax                 not measured: the deadline came first" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("default", ("default", {})),
        ("a:model.remat=dots,batch_size=8", ("a", {"model.remat": "dots", "batch_size": 8})),
        ("b:xla:xla_gpu_enable_triton_gemm=false", ("b", {"xla:xla_gpu_enable_triton_gemm": False})),
    ],
)
def test_variants_are_names_with_fields(argument, expected):
    import step

    assert step.parse_variant(argument) == expected


@pytest.mark.parametrize(
    ("field", "value", "legal"),
    [
        ("image_encoder.kind", "dinov2", "'vit' alone"),
        ("image_encoder.registers", 4, "0 alone"),
        ("cross.dropout", 0.1, "0.0 alone"),
        ("text_encoder.trained_layers", 2, "-1 alone"),
        ("optimizer.frozen", ("image_encoder/.*",), "[] alone"),
        ("loss.mim", 0.0, "1.0 alone"),
        ("text_encoder.kind", "mpnet", "roberta, bert"),
    ],
)
def test_another_model_than_the_reference_has_is_refused(field, value, legal):
    from contenders import Setup, check_reference

    config = Setup(size="tiny", image_size=32, batch_size=4, dtype="float32", steps=1).config()
    config.update_from_flattened_dict({"model.remat": "full", "text_encoder.kind": "bert"})
    check_reference(config, text_kinds=("roberta", "bert"))
    config.update_from_flattened_dict({field: value})
    received = list(value) if isinstance(value, tuple) else value
    with pytest.raises(UserError) as error:
        check_reference(config, text_kinds=("roberta", "bert"))
    assert str(error.value) == f"config.{field}={received!r}; the PyTorch reference has {legal}"


def test_a_profile_is_summed_up_by_kind_of_kernel(tmp_path):
    import kernels

    def kernel(name, microseconds, *, pid=1, tid=7):
        return {"ph": "X", "pid": pid, "tid": tid, "name": name, "dur": microseconds}

    events = [
        {"ph": "M", "name": "process_name", "pid": 1, "args": {"name": "/device:GPU:0"}},
        {"ph": "M", "name": "process_name", "pid": 2, "args": {"name": "/host:CPU"}},
        {"ph": "M", "name": "thread_name", "pid": 1, "tid": 7, "args": {"name": "Stream #13(Compute)"}},
        {"ph": "M", "name": "thread_name", "pid": 1, "tid": 8, "args": {"name": "XLA Ops"}},
        kernel("nvjet_sm90_tst_128x160", 3000),
        kernel("nvjet_sm90_tst_128x160", 1000),
        kernel("cudnn_generated_fort_native_sdpa_sm90_flash_fprop", 500),
        kernel("input_transpose_fusion_3", 200),
        kernel("loop_add_fusion", 100),
        kernel("all-reduce.1", 50),
        kernel("nvjet_sm90_tst_128x160", 9000, tid=8),  # the same time again, by operation
        kernel("nvjet_sm90_tst_128x160", 9000, pid=2),
    ]
    with gzip.open(tmp_path / "host.trace.json.gz", "wt") as file:
        json.dump({"traceEvents": events}, file)
    found = kernels.by_kind(kernels.device_kernels(tmp_path), steps=2)
    assert found == {
        "matrix products": {"ms": 2.0, "kernels": 1.0},
        "attention": {"ms": 0.25, "kernels": 0.5},
        "transposes": {"ms": 0.1, "kernels": 0.5},
        "element-wise": {"ms": 0.05, "kernels": 0.5},
        "collectives": {"ms": 0.025, "kernels": 0.5},
    }
    with pytest.raises(FileNotFoundError, match="holds no"):
        kernels.device_kernels(tmp_path / "nothing")
