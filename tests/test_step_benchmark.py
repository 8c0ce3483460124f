import gzip
import json
import os
import re
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

from mvlm_jax.errors import UserError

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
TOY = ("--size=tiny", "--image_size=32", "--batch_size=4", "--dtype=float32", "--steps=1", "--rounds=2")


@pytest.fixture(autouse=True)
def beside_the_benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def rows_of(file):
    return {row["name"]: row for row in map(json.loads, file.read_text().splitlines())}


@pytest.mark.slow
def test_variants_have_rows_with_a_profile_and_one_that_is_refused_is_a_failure(tmp_path, capsys):
    import step

    file = tmp_path / "rows.jsonl"
    variants = (
        "full:model.remat=full,image_encoder.layers=1,text_encoder.layers=1,cross.layers=1,text_encoder.vocab_size=300",
        "fused:model.attention=cudnn",
        "misspelt:model.remat=dotz",
    )
    flags = ("--compile_together", "--trace", f"--json={file}")
    assert step.main(["--only", "jax", *TOY, "--variants", *variants, *flags]) == 1
    rows, printed = rows_of(file), capsys.readouterr().out
    assert rows["fused"]["not_here"].startswith("not on this backend: config.model.attention=cudnn needs an NVIDIA GPU")
    assert "config.model.remat='dotz' is not one of auto, none, inputs, dots, full" in rows["misspelt"]["error"]
    assert "fused               not on this backend" in printed and "misspelt            not measured: UserE" in printed
    measured, profile = (json.loads(line) for line in file.read_text().splitlines()[:2])
    assert len(measured["seconds"]) == 2 and measured["loss"] > 0 and "remat='full'" in measured["compute"]
    # A CPU's profile names the operations of the compiled program.
    assert {"matrix products", "attention", "element-wise"} <= set(profile["kinds"])
    assert {"image_encoder", "text_encoder", "losses", "rest"} <= set(profile["parts"])
    assert 0 < profile["kinds"]["matrix products"]["ms"] <= sum(profile["parts"].values())


def test_nothing_is_begun_after_the_deadline(tmp_path, capsys):
    import step

    flags = ("--deadline=0", "--compile_together", "--variants", "default", f"--json={tmp_path / 'rows.jsonl'}")
    assert step.main(["--only", "jax", *TOY, *flags]) == 1
    assert "default             not measured: the deadline came first" in capsys.readouterr().out


class Scripted:
    """A contender whose third turn comes too late, or which is not there. The first run of a turn is slow."""

    absent = ()

    def __init__(self, name, setup, *, deadline):
        self.name, self._runs = name, 0

    def ask(self, call, *arguments):
        self._call = call

    def answer(self):
        from processes import Late, NotHere

        if self.name in self.absent:
            raise NotHere("not on this machine: torch")
        if self._call == "prepare":
            return {"first_step_s": 1.0, "compiler_mib": None}
        self._runs += 1
        if self._runs > 2 * 2:
            raise Late
        return {"seconds": 9.0 if self._runs % 2 else 2.0, "loss": 1.0, "peak_mib": 1.0}

    def call(self, call, *arguments):
        self.ask(call)
        return self.answer()

    def close(self):
        pass


@pytest.fixture
def scripted(monkeypatch):
    import step

    monkeypatch.setattr(step, "Contender", Scripted)
    monkeypatch.setattr(step, "accelerated", lambda: False)
    monkeypatch.setattr(Scripted, "absent", ())
    return step


def test_whole_rounds_before_the_deadline_make_a_row_without_the_first_run_of_each_turn(scripted, tmp_path):
    file = tmp_path / "rows.jsonl"
    assert scripted.main(["--only", "jax", *TOY, "--rounds=5", "--variants", "default", f"--json={file}"]) == 0
    assert rows_of(file)["default"]["seconds"] == [2.0, 2.0]


@pytest.mark.parametrize(("only", "status"), [((), 0), (("--only", "jax", "torch_eager"), 1)])
def test_a_missing_package_is_a_failure_only_of_a_contender_that_is_named(
    scripted, monkeypatch, tmp_path, only, status
):
    monkeypatch.setattr(Scripted, "absent", ("torch_eager", "torch_compiled"))
    file = tmp_path / "rows.jsonl"
    assert scripted.main([*only, *TOY, "--variants", "default", f"--json={file}"]) == status
    assert rows_of(file)["torch_eager"]["not_here"] == "not on this machine: torch"


def test_no_row_at_all_is_a_failure(scripted, monkeypatch):
    monkeypatch.setattr(Scripted, "absent", ("jax",))
    assert scripted.main(["--only", "jax", *TOY, "--variants", "default"]) == 1


def test_a_missing_package_is_told_from_a_fault():
    import processes

    absent = processes.refusal(ModuleNotFoundError("No module named 'torch'", name="torch"))
    assert absent == {"not_here": "not on this machine: torch"}
    assert "error" in processes.refusal(ModuleNotFoundError("No module named 'kernels2'", name="kernels2"))


def test_a_process_that_dies_has_a_reason_too():
    import processes

    contender = processes.Contender("jax", {}, deadline=time.monotonic() + 60)
    contender.close()
    for _ in range(2):
        with pytest.raises(processes.NotMeasured, match="the process ended with status -9"):
            contender.call("prepare")


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


def test_variants_that_are_one_program_are_compiled_once():
    from contenders import Jax, Setup

    compiled = []

    class Lowered:
        def __init__(self, text):
            self.as_text = lambda: text

        def compile(self, *, compiler_options):
            compiled.append((self.as_text(), compiler_options))
            if self.as_text() == "broken":
                raise RuntimeError("no room")
            return object()

    jax = Jax(Setup(size="tiny", image_size=32, batch_size=4, dtype="float32", steps=1))
    one = jax._executable(Lowered("a"), {})
    assert jax._executable(Lowered("a"), {}) is one
    assert jax._executable(Lowered("b"), {}) is not one
    assert jax._executable(Lowered("a"), {"option": 1}) is not one
    for _ in range(2):
        with pytest.raises(RuntimeError, match="no room"):
            jax._executable(Lowered("broken"), {})
    assert compiled == [("a", None), ("b", None), ("a", {"option": 1}), ("broken", None)]


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
    summary = kernels.summary(kernels.read_profile(tmp_path), text="", steps=2)
    assert summary["kinds"] == {
        "matrix products": {"ms": 2.0, "kernels": 1.0},
        "attention": {"ms": 0.25, "kernels": 0.5},
        "transposes": {"ms": 0.1, "kernels": 0.5},
        "element-wise": {"ms": 0.05, "kernels": 0.5},
        "collectives": {"ms": 0.025, "kernels": 0.5},
    }
    assert summary["longest"][0] == ("nvjet_sm90_tst_128x160", 2.0, 1.0, "")
    with pytest.raises(FileNotFoundError, match="holds no"):
        kernels.read_profile(tmp_path / "nothing")


PROGRAM = """HloModule jit_step

%fused (p: f32[4,4]) -> f32[4,4] {
  %p = f32[4,4]{1,0} parameter(0)
  ROOT %inner = f32[4,4]{1,0} dot(%p, %p), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

%moved (q: f32[4,4]) -> f32[4,4] {
  %q = f32[4,4]{1,0} parameter(0)
  ROOT %turned = f32[4,4]{1,0} transpose(%q), dimensions={1,0}
}

ENTRY %main (x: f32[4,4]) -> f32[4,4] {
  %x = f32[4,4]{1,0} parameter(0)
  %scores = f32[4,4]{1,0} fusion(%x), kind=kLoop, calls=%fused, metadata={op_name="jit(step)/jvp(M.f)/image_encoder/self_attention/vmap()/dot_general"}
  %query = f32[4,4]{1,0} fusion(%scores), kind=kLoop, calls=%fused, metadata={op_name="jit(step)/jvp(M.f)/image_encoder/self_attention/query/dot_general"}
  %turn = f32[4,4]{1,0} fusion(%query), kind=kLoop, calls=%moved
  %loss = f32[4,4]{1,0} add(%turn, %turn), metadata={op_name="jit(step)/transpose(jvp())/add"}
  ROOT %loop = f32[4,4]{1,0} call(%loss), to_apply=%moved
}
"""  # noqa: E501


def test_the_profile_of_a_cpu_is_summed_up_by_what_the_program_does(tmp_path):
    import kernels

    def operation(name, start, microseconds, **more):
        args = {"args": {"hlo_op": name} | more}
        return {"ph": "X", "pid": 3, "tid": 5, "name": name, "ts": start, "dur": microseconds} | args

    events = [
        {"ph": "M", "name": "process_name", "pid": 3, "args": {"name": "/host:CPU"}},
        operation("loop", 0, 4000),  # only runs the others
        operation("scores", 0, 1000),
        operation("query", 1000, 2000),
        operation("turn", 1500, 500),  # inside
        operation("loss", 3000, 250),
        operation("of another program", 5000, 9000),
        {"ph": "X", "pid": 3, "tid": 5, "name": "end: loss", "ts": 3250, "dur": 100, "args": {}},
    ]
    with gzip.open(tmp_path / "host.trace.json.gz", "wt") as file:
        json.dump({"traceEvents": events}, file)
    summary = kernels.summary(kernels.read_profile(tmp_path), text=PROGRAM, steps=1)
    assert {kind: entry["ms"] for kind, entry in summary["kinds"].items()} == {
        "matrix products": 1.5, "attention": 1.0, "transposes": 0.5, "element-wise": 0.25,
    }  # fmt: skip
    assert summary["parts"] == {"image_encoder": 2.5, "rest": 0.5, "losses": 0.25}


@pytest.mark.slow
def test_the_launcher_for_speed_measures_every_variant_from_a_directory_of_wheels(tmp_path):
    wheels, programs = tmp_path / "wheels", tmp_path / "bin"
    wheels.mkdir(), programs.mkdir()
    with zipfile.ZipFile(wheels / "extra-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("extra.py", "X = 1\n")
        wheel.writestr("extra-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: extra\nVersion: 1.0\n")
        wheel.writestr("extra-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr("extra-1.0.dist-info/RECORD", "")
    python = programs / "python3"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    environment = os.environ | {"PATH": f"{programs}{os.pathsep}{os.environ['PATH']}", "WHEELS": "wheels"}
    command = ["bash", BENCHMARKS.parent / "launch" / "gpu_speed.sh", "rows.jsonl", "--only", "jax", *TOY, "--rounds=1"]
    environment |= {"SITE": str(tmp_path / "site"), "DEADLINE": "3600"}  # whatever else the machine does
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (tmp_path / "site" / "extra.py").exists(), done.stderr
    script = (BENCHMARKS.parent / "launch" / "gpu_speed.sh").read_text()
    variants = re.findall(r"^  '?(\w+)(?:$|:model)", script, re.MULTILINE)
    rows = rows_of(tmp_path / "rows.jsonl")
    assert {"default", "scan", "remat_full"} <= set(variants) == set(rows)
    measured = {name for name, row in rows.items() if row.get("kinds")}
    refused = {name for name, row in rows.items() if "error" in row}
    assert measured | refused == set(variants) and "default" in measured
    assert all("is not one of" in rows[name]["error"] for name in refused)
    assert done.returncode == bool(refused), done.stdout + done.stderr
    assert set(re.findall(r"^(\w+) is compiled after", done.stdout, re.MULTILINE)) == measured
