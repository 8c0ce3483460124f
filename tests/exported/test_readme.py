"""The program in the README runs on an export, as it is written."""

import re

from PIL import Image
from tiny import ROOT

PROGRAM = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


def test_the_program_of_the_readme_runs(export, tmp_path, monkeypatch, capsys):
    [program] = PROGRAM.findall((ROOT / "README.md").read_text())
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "demo-export").symlink_to(export)
    monkeypatch.chdir(tmp_path)
    exec(compile(program, "README.md", "exec"), {})
    printed = capsys.readouterr().out
    assert "circle" in program and len(re.findall(r"\d\.\d*", printed)) >= 20  # 16 cosines, 4 probabilities
    with Image.open(tmp_path / "attention.png") as picture:
        assert picture.width > 100
