"""`mvlm launch` on every platform, with stand-ins for the providers' tools."""

import json
import os
import re
import shlex
import subprocess
import tarfile
from pathlib import Path

import pytest

from mvlm_jax import cli
from mvlm_jax.errors import RunError
from mvlm_jax.launching import archive
from mvlm_jax.launching.job import config_words
from mvlm_jax.launching.tools import Tools
from mvlm_jax.launching.vertex_worker import words as vertex_words

NASTY = ['--config.data.train=json:it\'s a "set" $(id) `id` $HOME.json', "--config.seed=7", "--config.steps", "5"]
JOINED = ["--config=demo", *NASTY[:2], "--config.steps=5"]
IN_CLOUD = ["--config=demo", "--workdir=/gcs/b-1/runs/x", "--config.data.data_dir=/gcs/b-2/data"]
COMPUTE = ["tpu", "--zone=us-east5-a", "--machine_type=ct6e-standard-4t", "--topology=4x4"]
QUEUE = ["tpu", "--zone=us-east5-a", "--accelerator_type=v6e-16", "--runtime_version=v2-alpha-tpuv6e"]
SLICES = ["multislice", *QUEUE[1:]]
GKE = ["gke", "--image=example.org/mvlm:1", "--tpu_type=tpu-v6e-slice", "--topology=4x4"]
GPUS = ["gke", "--image=example.org/mvlm:1", "--gpu_type=nvidia-h100-mega-80gb", "--nodes=2"]
VERTEX = ["vertex", "--region=us-central1", "--image=example.org/mvlm:1", "--machine_type=a3-highgpu-8g"]
SLURM = ["slurm"]
FILES = archive.FILES
ALL = {"compute": COMPUTE, "queue": QUEUE, "slices": SLICES, "gke": GKE, "vertex": VERTEX, "slurm": SLURM}


def launch(platform, verb, *words, name="mvlm"):
    return cli.main(["launch", platform[0], verb, f"--name={name}", *platform[1:], *words])


def train_words(script):
    """Of the startup or batch script, as a shell reads them."""
    [line] = [line for line in script.splitlines() if " train " in line]
    words = shlex.split(line.replace('"${hosts[@]}"', ""))
    return words[words.index("train") :]


def given_to_the_run(platform, tools):
    match platform[0]:
        case "tpu" | "multislice":
            return train_words(tools.text("startup.sh"))
        case "gke":
            manifest = json.loads(tools.text("stdin"))
            [container] = pod(manifest)["containers"]
            assert "$(" not in " ".join(container["command"]).replace("$$", "")
            return [word.replace("$$", "$") for word in container["command"][1:]]
        case "vertex":
            return json.loads(tools.text("config.json"))["workerPoolSpecs"][0]["containerSpec"]["args"]
        case "slurm":
            return train_words(tools.text("stdin"))


def pod(manifest):
    [job] = manifest["spec"]["replicatedJobs"]
    return job["template"]["spec"]["template"]["spec"]


@pytest.mark.parametrize("platform", ALL.values(), ids=ALL)
def test_the_run_gets_the_words_as_they_were_given(platform, tools):
    assert launch(platform, "create", "--workdir=/gcs/b-1/a b's", "--config=demo", *NASTY) == 0
    assert given_to_the_run(platform, tools) == [
        "train", *JOINED, "--workdir=/gcs/b-1/a b's", "--stopped_status=75"
    ]  # fmt: skip


@pytest.mark.parametrize("platform", ALL.values(), ids=ALL)
def test_a_dry_run_prints_everything_and_touches_nothing(platform, tools, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TMPDIR", str(tmp_path / "here"))
    monkeypatch.setattr("tempfile.tempdir", None)
    assert launch(platform, "create", *IN_CLOUD, "--dry-run") == 0
    printed = capsys.readouterr().out
    assert "--stopped_status=75" in printed and "--config=demo" in printed
    assert tools.commands() == [] and list((tmp_path / "here").iterdir()) == []
    for verb in ("status", "delete"):
        assert launch(platform, verb, "--dry-run") == 0
    assert tools.commands() == []


@pytest.mark.parametrize("platform", ALL.values(), ids=ALL)
@pytest.mark.parametrize("name", ["it's a", "$(id)"])
def test_a_name_that_the_provider_would_refuse_is_refused(platform, name, tools, capsys):
    assert launch(platform, "create", *IN_CLOUD, name=name) == 2
    assert f"--name={name!r} must begin with" in one_line(capsys)
    assert tools.commands() == []


@pytest.mark.parametrize("platform", ALL.values(), ids=ALL)
def test_a_missing_tool_is_one_line(platform, tools, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(tools.folder / "empty"))
    Path("mvlm-1.out").touch()  # the output of a batch job
    program = {"gke": "kubectl", "slurm": "(sbatch|squeue|scancel|tail)"}.get(platform[0], "gcloud")
    for verb in ("create", "status", "logs", "delete"):
        assert launch(platform, verb, *(IN_CLOUD if verb == "create" else [])) == 2
        assert re.search(f"the program {program} is needed and is not on PATH: ", one_line(capsys))


@pytest.mark.parametrize("program", ["sbatch", "squeue"])
def test_a_batch_job_needs_every_program_of_slurm(program, tools, capsys):
    (tools.folder / program).unlink()
    assert launch(SLURM, "create", *IN_CLOUD) == 2
    assert f"the program {program} is needed and is not on PATH: it is part of Slurm" in one_line(capsys)
    assert tools.commands() == []


@pytest.mark.parametrize("words, said", [
    (["--config=demo", "--workdir=gs://b-1/x", "--config.stepz=3"], "did you mean 'steps'"),
    (["--config=demo", "--workdir=gs://b-1/x", "--config.batch_size=-1"], "batch_size"),
    (["--config=dem", "--workdir=gs://b-1/x"], "did you mean demo"),
    (["--config=demo", "--workdir=runs/x"], "would be lost with the machine"),
    (["--config=demo", "--workdir=gs:///x"], "names no bucket"),
    (["--config=demo", "--workdir=gs://b-1/x", "--bucket=a b"], "is not the name of a bucket"),
    (["--config=demo", "--workdir=gs://b-1/x", "stray"], "unexpected argument 'stray'"),
    (["--config=demo", "--workdir=gs://b-1/x", "--spot", "--reservation=r"], "exclude each other"),
    (["--config=demo"], "workdir"),
])  # fmt: skip
@pytest.mark.parametrize("platform", [COMPUTE, QUEUE, GKE, VERTEX], ids=["compute", "queue", "gke", "vertex"])
def test_what_is_wrong_is_refused_before_anything_is_paid_for(platform, words, said, tools, capsys):
    assert launch(platform, "create", *words) == 2
    assert said in one_line(capsys)
    assert tools.commands() == []


def one_line(capsys):
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.startswith("mvlm launch ")
    return error


# What is done after a command of each kind has failed.
FAILURES = {
    "code": (COMPUTE, "*storage cp*", []),
    "policy": (COMPUTE, "*workload-policy mvlm*", []),
    "template": (COMPUTE, "*instance-templates create*", ["resource-policies delete"]),
    "group": (COMPUTE, "*managed create*", ["instance-templates delete", "resource-policies delete"]),
    "code of a queued TPU": (QUEUE, "*storage cp*", []),
    "request": (QUEUE, "*queued-resources create*", []),
    "JobSet": (GKE, "*create --filename*", []),
    "custom job": (VERTEX, "*custom-jobs create*", []),
    "batch job": (SLURM, "sbatch*", []),
}


@pytest.mark.parametrize("platform, pattern, undone", FAILURES.values(), ids=FAILURES)
def test_a_command_that_fails_is_told_and_what_was_made_before_is_deleted(platform, pattern, undone, tools, capsys):
    tools.fail(pattern)
    assert launch(platform, "create", *IN_CLOUD) == 1
    error = one_line(capsys)
    assert "status 3 from: " in error
    deleted = [" ".join(command) for command in tools.commands() if "delete" in command]
    assert [what in command for what, command in zip(undone, deleted, strict=True)] == [True] * len(undone)
    if pattern in ("*managed create*", "*queued-resources create*", "*create --filename*", "*custom-jobs create*"):
        assert f"mvlm launch {platform[0]} delete --name=mvlm" in error  # to be sure


def test_what_could_not_be_deleted_is_told(tools, capsys):
    tools.fail("*managed create*", "*instance-templates delete*")
    assert launch(COMPUTE, "create", *IN_CLOUD) == 1
    assert "and undoing it failed with status 3 from: gcloud compute instance-templates delete mvlm" in one_line(capsys)
    # The template costs nothing; the policy, made before it, was deleted nevertheless.
    assert tools.command("resource-policies", "delete")


LISTINGS = {"queue": "queued_resources__list", "gke": "get__jobset", "vertex": "custom_jobs__list", "slurm": "squeue"}


@pytest.mark.parametrize("kind", ["managed__list", "instance_templates__list", "resource_policies__list"])
def test_what_is_left_of_a_slice_is_not_touched(kind, tools, capsys):
    tools.answer(**{kind: "mvlm"})
    assert launch(COMPUTE, "create", *IN_CLOUD) == 2
    assert "exists already" in one_line(capsys)
    assert all("list" in command for command in tools.commands())


@pytest.mark.parametrize("platform, kind", [(ALL[name], kind) for name, kind in LISTINGS.items()], ids=LISTINGS)
def test_what_is_there_already_is_not_touched(platform, kind, tools, capsys):
    tools.answer(**{kind: "mvlm"})
    assert launch(platform, "create", *IN_CLOUD) == 2
    assert "exists already" in one_line(capsys)
    assert len(tools.commands()) == 1


@pytest.mark.parametrize("platform, kind", [(ALL[name], kind) for name, kind in LISTINGS.items()], ids=LISTINGS)
def test_nothing_is_made_where_nobody_can_say_what_is_there(platform, kind, tools, capsys):
    tools.fail(f"*{kind.replace('__', ' ').replace('_', '-')}*")
    assert launch(platform, "create", *IN_CLOUD) == 1
    assert "status 3 from: " in one_line(capsys)
    assert len(tools.commands()) == 1


def test_what_was_made_although_the_command_failed_is_told(tools, capsys):
    tools.fail("*create --filename*")
    (tools.folder / "kubectl").write_text(f"""#!/bin/sh
case "$*" in
  create*) /bin/touch {tools.folder}/made; exit 1 ;;
  get*) [ -f {tools.folder}/made ] && echo jobset/mvlm; exit 0 ;;
esac
""")
    assert launch(GKE, "create", *IN_CLOUD) == 1
    assert (
        "the JobSet mvlm is there nevertheless and costs money; to be sure that it is gone: mvlm launch gke delete"
        in (one_line(capsys))
    )


def test_ctrl_c_names_what_may_cost_money(monkeypatch, capsys):
    tools = Tools(dry_run=False)
    monkeypatch.setattr(tools, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        tools.create(["gcloud"], what="the TPU x", listing=[], delete="mvlm launch tpu delete --name=x")
    assert "the TPU x may exist and cost money; delete it with: mvlm launch tpu delete --name=x" in (
        capsys.readouterr().err
    )


def interrupted(words, text=None):
    raise KeyboardInterrupt


@pytest.mark.parametrize("spot", ["0", "1"])
@pytest.mark.parametrize("platform", [COMPUTE, QUEUE, GKE, VERTEX], ids=["compute", "queue", "gke", "vertex"])
def test_only_the_flag_buys_spot_machines(platform, spot, tools, monkeypatch):
    monkeypatch.setenv("SPOT", spot)
    assert launch(platform, "create", *IN_CLOUD) == 0
    assert "spot" not in bought(tools)
    assert launch(platform, "create", *IN_CLOUD, "--spot") == 0
    assert "spot" in bought(tools)


def bought(tools):
    written = [tools.text(name) for name in ("stdin", "config.json") if (tools.folder / name).exists()]
    return " ".join([*written, *(" ".join(command) for command in tools.commands())]).lower()


def test_a_slice_of_compute_engine(tools):
    more = ["--network=n", "--subnetwork=s", "--service_account=a@b", "--project=p", "--hours=2", "--reservation=r"]
    assert launch(COMPUTE, "create", *IN_CLOUD, *more) == 0
    policy = tools.command("workload-policy")
    assert {"mvlm", "--region=us-east5", "--accelerator-topology=4x4", "--project=p"} <= set(policy)
    template = tools.command("instance-templates", "create")
    assert {"--machine-type=ct6e-standard-4t", "--reservation=r", "--network=n", "--subnet=s",
            "--provisioning-model=RESERVATION_BOUND", "--instance-termination-action=DELETE",
            "--service-account=a@b"} <= set(template)  # fmt: skip
    group = tools.command("managed", "create")
    assert {"--size=4", "--zone=us-east5-a", "--template=mvlm", "--workload-policy=mvlm"} <= set(group)


@pytest.mark.parametrize("platform, words, said", [
    (COMPUTE, ["--machine_type=ct6e"], "must be like ct6e-standard-4t"),
    (COMPUTE, ["--machine_type=new-standard-4t"], "no image is known for"),
    (COMPUTE, ["--topology=3x3"], "has 9 chips, no multiple of the 4"),
    (COMPUTE, ["--accelerator_type=v6e-16"], "give --machine_type=… --topology=… for Compute Engine, or"),
    (COMPUTE, ["--wait=6h"], "answers at once"),
    (SLICES, ["--slices=1"], "slices"),
    (SLURM, ["--workdir=gs://b-1/x"], "is not mounted by Slurm"),
    (SLURM, ["--mount=/data"], "without one every directory is seen"),
])  # fmt: skip
def test_machines_that_cannot_be_are_refused(platform, words, said, tools, capsys):
    assert launch(platform, "create", *IN_CLOUD, *words) == 2
    assert said in one_line(capsys)
    assert tools.commands() == []


def test_slices_of_the_queue(tools):
    more = ["--slices=3", "--wait=6h", "--spot", "--network=n", "--subnetwork=s", "--service_account=a@b"]
    assert launch(SLICES, "create", *IN_CLOUD, *more) == 0
    request = tools.command("queued-resources", "create")
    assert {"--node-count=3", "--node-prefix=mvlm", "--spot", "--valid-until-duration=6h", "--network=n",
            "--subnetwork=s", "--service-account=a@b", "--accelerator-type=v6e-16"} <= set(request)  # fmt: skip


def test_a_run_is_started_again_on_every_slice_of_a_tpu_that_is_there(tools):
    assert launch(SLICES, "run", *IN_CLOUD, "--slices=2") == 0
    started = [command for command in tools.commands() if "ssh" in command]
    assert [command[command.index("ssh") + 1] for command in started] == ["mvlm-0", "mvlm-1"]
    assert all("--worker=all" in command and "systemd-run" in command[-1] for command in started)


def test_the_program_is_sent_without_anything_else_of_the_checkout(tools, tmp_path, monkeypatch):
    monkeypatch.setattr(archive, "FILES", FILES)
    recipe = tmp_path / "here" / "mine.py"
    recipe.write_text("from mvlm_jax.configs import demo\ndef get_config():\n  return demo.get_config()\n")
    assert launch(QUEUE, "create", "--config=mine.py", "--workdir=gs://b-1/x") == 0
    with tarfile.open(tools.folder / "code.tar.gz") as sent:
        names = set(sent.getnames())
    top = {name.split("/")[0] for name in names}
    assert top == {"setup.py", "pyproject.toml", "README.md", "LICENSE", "constraints.txt", "configs", "mvlm_jax",
                   "sent_recipe.py"}  # fmt: skip
    assert "mvlm_jax/launching/startup.py" in names and not any("__pycache__" in name for name in names)
    assert given_to_the_run(QUEUE, tools)[1] == "--config=sent_recipe.py"


def test_logs_come_from_the_machine_or_from_what_it_left(tools, capsys):
    tools.answer(list_instances=r"mvlm-b\nmvlm-a")
    assert launch(COMPUTE, "logs", "--workdir=gs://b-1/runs/x") == 0
    assert [command[3] for command in tools.commands() if "ssh" in command] == ["mvlm-a", "mvlm-b"]
    for platform in (COMPUTE, QUEUE):
        tools.fail("*ssh*")
        assert launch(platform, "logs", "--workdir=gs://b-1/runs/x") == 0
        assert tools.commands()[-1] == ["gcloud", "storage", "cat", "gs://b-1/runs/x/launch/worker-0-0.log"]
        assert launch(platform, "logs") == 1
        assert "with --workdir the log" in one_line(capsys)


def test_delete_goes_on_and_tells_what_failed(tools, capsys):
    tools.fail("*managed delete*")
    tools.answer(managed__list="mvlm", instance_templates__list="mvlm", resource_policies__list="mvlm")
    assert launch(COMPUTE, "delete") == 1
    assert "status 3 from: gcloud compute instance-groups managed delete mvlm" in one_line(capsys)
    deleted = [command[2] for command in tools.commands() if "delete" in command]
    assert deleted == ["instance-groups", "instance-templates", "resource-policies"]


@pytest.mark.parametrize("verb", ["status", "logs", "delete"])
def test_a_tpu_is_not_called_gone_in_the_wrong_place(verb, tools, capsys):
    assert launch(["tpu", "--zone=us-east5-a"], verb) == 2
    assert "give --machine_type=… --topology=… for Compute Engine, or --accelerator_type=…" in one_line(capsys)
    assert tools.commands() == []


@pytest.mark.parametrize("platform", [COMPUTE, QUEUE], ids=["compute", "queue"])
def test_to_delete_what_is_gone_is_no_error(platform, tools, capsys):
    assert launch(platform, "delete") == 0
    assert "there is no" in capsys.readouterr().out
    assert not any("delete" in command for command in tools.commands())


@pytest.mark.parametrize("platform, pattern", [
    (QUEUE, "*queued-resources delete*"), (GKE, "*delete jobset*"), (VERTEX, "*custom-jobs cancel*"),
    (SLURM, "scancel*"),
], ids=["queue", "gke", "vertex", "slurm"])  # fmt: skip
def test_a_delete_that_fails_is_told(platform, pattern, tools, capsys):
    tools.answer(list="123")
    tools.fail(pattern)
    assert launch(platform, "delete") == 1
    assert "status 3 from: " in one_line(capsys)


def test_a_custom_job_on_two_machines_tells_each_process_who_it_is(tools):
    assert launch(VERTEX, "create", *IN_CLOUD, "--gpu_type=NVIDIA_H100_80GB", "--nodes=3") == 0
    job = json.loads(tools.text("config.json"))
    assert [pool["replicaCount"] for pool in job["workerPoolSpecs"]] == [1, 2]
    assert job["workerPoolSpecs"][1]["containerSpec"]["command"] == ["python", "-m", "mvlm_jax.launching.vertex_worker"]
    assert job["scheduling"]["timeout"] == "86400s"
    spec = {
        "cluster": {"workerpool0": ["a:2222"], "workerpool1": ["b:2222", "c:2222"]},
        "task": {"type": "workerpool1", "index": 1},
    }
    assert vertex_words(["train"], json.dumps(spec)) == [
        "train", "--coordinator_address=a:8482", "--num_processes=3", "--process_id=2"
    ]  # fmt: skip


@pytest.mark.parametrize("of_the_run, of_the_job, queued_again", [(0, 0, False), (75, 0, True), (2, 2, False)])
def test_a_batch_job_that_is_interrupted_is_queued_again(of_the_run, of_the_job, queued_again, tools):
    assert launch(SLURM, "create", "--config=demo", "--workdir=runs/x", "--partition=a b") == 0
    assert "--partition=a b" in tools.command("sbatch")
    for name, status in (("srun", of_the_run), ("scontrol", 0)):
        (tools.folder / name).write_text(f'#!/bin/sh\necho {name} "$@" >> {tools.folder}/steps\nexit {status}\n')
        (tools.folder / name).chmod(0o755)
    environment = {"PATH": f"{tools.folder}:{os.defpath}", "SLURM_JOB_ID": "7"}
    job = subprocess.run(["bash", "-c", tools.text("stdin")], env=environment)
    assert job.returncode == of_the_job
    step, *then = tools.text("steps").splitlines()
    assert step.startswith("srun --kill-on-bad-exit=0 .venv/bin/mvlm train --config=demo --workdir=runs/x")
    assert then == (["scontrol requeue 7"] if queued_again else [])


@pytest.mark.parametrize("words, start", [
    (["--container=pyxis"], ["--container-image=i.sqsh", "--container-mounts=/data:/data", "mvlm"]),
    (["--container=apptainer"], ["apptainer", "exec", "--nv", "--bind=/data:/data", "i.sqsh", "mvlm"]),
    (["--container=apptainer", "--gpus=0"], ["apptainer", "exec", "--bind=/data:/data", "i.sqsh", "mvlm"]),
])  # fmt: skip
def test_a_batch_job_in_a_container(words, start, tools):
    assert launch(SLURM, "create", "--config=demo", "--workdir=/data/x", "--image=i.sqsh", "--mount=/data", *words) == 0
    step = shlex.split(next(line for line in tools.text("stdin").splitlines() if line.startswith("srun")))
    assert step[2 : step.index("train")] == start


def test_config_words_are_taken_as_they_are():
    argv = ["--config.a", "x y", "--name=n", "-config=demo", "--noconfig.b", "--config.c", "--dry_run", "--configure=1"]
    assert config_words(argv) == ("--config=demo", "--config.a=x y", "--noconfig.b", "--config.c")


def test_an_error_while_undoing_does_not_hide_the_first(monkeypatch):
    tools = Tools(dry_run=False)
    monkeypatch.setattr(tools, "run", failing)
    with pytest.raises(RunError, match="first; and undoing it failed with second"), tools.undoing(["x"]):
        raise RunError("first")


def failing(words, text=None):
    raise RunError("second")
