"""Each command, with a run, data, an export and a page in emulated stores."""

import json

import pytest
from tiny import demo_flags

import mvlm_jax
from mvlm_jax import cli
from mvlm_jax.stores.mirror import close_all
from mvlm_jax.stores.objects import Store, parse


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["gs", "s3"])
def test_a_run_and_all_that_is_made_of_it_may_lie_in_a_store(scheme, demo_dir, demo_run, emulators, tmp_path, capsys):
    bucket = f"{scheme}://bucket"
    data = {path.relative_to(demo_dir).as_posix(): path.read_bytes for path in demo_dir.rglob("*") if path.is_file()}
    Store(parse(f"{bucket}/data")).write_all(data)

    flags = demo_flags(data_dir=f"{bucket}/data", workdir=f"{bucket}/run", steps=6, checkpoint__every=2)
    assert cli.main(["train", *flags]) == 0
    said = capsys.readouterr().err
    assert f"the run is in {bucket}/run" in said and f"mvlm report --workdir={bucket}/run" in said
    assert str(tmp_path / "cache" / "mvlm-jax" / "stores" / "copy") not in said
    on_disk = [json.loads(line) for line in (demo_run / "metrics.jsonl").read_text().splitlines()]
    store = Store(parse(f"{bucket}/run"))
    stored = [json.loads(line) for line in store.read("metrics/000000.jsonl").value.splitlines()]
    clock = {"time", "timing"}
    assert [{k: v for k, v in line.items() if k not in clock} for line in stored] == [
        {k: v for k, v in line.items() if k not in clock} for line in on_disk
    ]

    assert cli.main(["evaluate", f"--workdir={bucket}/run", "--step=4"]) == 0
    evaluations = [json.loads(value) for _, value in store.read_all(store.names("eval"))]
    assert {evaluation["step"] for evaluation in evaluations} == {4} and len(evaluations) > 1
    assert cli.main(["report", f"--workdir={bucket}/run", "--examples=1"]) == 0
    assert f"report: {bucket}/run/report.html" in capsys.readouterr().out
    page = store.read("report.html").value.decode()
    assert f"mvlm evaluate --workdir={bucket}/run" in page and "stores/copy" not in page

    assert cli.main(["weights", "export", f"--workdir={bucket}/run", f"--output={bucket}/exported"]) == 0
    assert cli.main(["weights", "export", f"--workdir={bucket}/run", f"--output={bucket}/exported"]) == 2
    assert f"--output={bucket}/exported exists already" in capsys.readouterr().err
    assert cli.main(["weights", "inspect", f"--source={bucket}/exported/image_encoder"]) == 0
    model = mvlm_jax.load(f"{bucket}/exported")
    assert model.encode_text(["a red circle"]).shape[0] == 1
    close_all(failed=False)

    start = f"--config.init_from.checkpoint={bucket}/run"
    flags = demo_flags(data_dir=f"{bucket}/data", workdir=tmp_path / "next", steps=6)
    status, said = cli.main(["train", *flags, start]), capsys.readouterr().err
    assert status == 0, said
    weights = json.loads((tmp_path / "next" / "weights.json").read_text())
    assert weights["loaded"][0]["source"] == f"{bucket}/run, step 6"
