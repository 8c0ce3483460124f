import json
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def test_ours_and_the_pytorch_reference_take_turns(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.delitem(sys.modules, "step", raising=False)
    import step

    file = tmp_path / "rows.jsonl"
    toy = ("--size=tiny", "--image_size=32", "--batch_size=4", "--dtype=float32", "--steps=1", "--rounds=2")
    assert step.main(["--only", "jax", "torch_eager", *toy, f"--json={file}"]) == 0
    rows = {row["name"]: row for row in map(json.loads, file.read_text().splitlines())}
    assert rows["speed of jax / torch_eager"]["least"] > 0
    assert {"torch_eager", "jax beside torch_eager", "peak memory of jax / torch_eager"} <= set(rows)
    assert "speed of jax / torch_eager: " in capsys.readouterr().out
