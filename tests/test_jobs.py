"""The job files of examples/, with stand-ins for what a cluster has: docs/cluster.md says what real ones did."""

import os
import re
import shlex
import signal
import subprocess
import time
from pathlib import Path

import pytest
from torch.distributed.run import get_args_parser
from typer.testing import CliRunner

from superpose.cli import app

EXAMPLES = Path(__file__).parents[1] / "examples"
JOBS = ["slurm/train.sbatch", "slurm/seeds.sbatch"]
STEP = """#!/bin/bash
echo "$(basename "$0") $*" >> "$HEARD"
trap 'echo saved >> "$HEARD"; exit ${CODE}' USR1
touch "$STARTED"
for i in {1..200}; do sleep 0.05; done
"""
"""What the job starts: it saves when it is told to, and ends with a code."""


@pytest.fixture
def job(tmp_path):
    """Starts a job file, tells it that time is nearly up, and returns what was heard on the cluster."""
    stubs = tmp_path / "bin"
    stubs.mkdir()
    (stubs / "scontrol").write_text('#!/bin/bash\n[ "$1" = show ] && echo n1 || echo "scontrol $*" >> "$HEARD"\n')
    for name in ("srun", "superpose"):
        (stubs / name).write_text(STEP)
    for stub in stubs.iterdir():
        stub.chmod(0o755)
    heard, started = tmp_path / "heard", tmp_path / "started"
    slurm = {
        "JOB_ID": "7",
        "CPUS_PER_TASK": "8",
        "JOB_NODELIST": "n[1-2]",
        "NNODES": "2",
        "GPUS_ON_NODE": "8",
        "ARRAY_TASK_ID": "3",
    }
    environment = {**os.environ, **{f"SLURM_{name}": value for name, value in slurm.items()}}
    environment |= {"PATH": f"{stubs}:{os.environ['PATH']}", "HEARD": str(heard), "STARTED": str(started)}

    def start(name, *arguments, code):
        process = subprocess.Popen(["bash", EXAMPLES / name, *arguments], env=environment | {"CODE": str(code)})
        deadline = time.monotonic() + 30
        while not started.exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGUSR1)
        process.wait(timeout=30)
        return heard.read_text().splitlines()

    return start


@pytest.mark.parametrize("name", JOBS)
def test_a_job_saves_and_goes_back_into_the_queue(job, name):
    _, *heard = job(name, "one", "two", "three", code=138)
    assert heard == ["saved", "scontrol requeue 7"]


@pytest.mark.parametrize("name", JOBS)
def test_a_job_that_was_finished_just_then_does_not_come_back(job, name):
    _, *heard = job(name, "one", "two", "three", code=0)
    assert heard == ["saved"]


def test_what_a_training_job_starts_is_there(job):
    """torchrun and superpose know all options that stand in the file."""
    started, *_ = job("slurm/train.sbatch", "cpu-tiny", "runs/one", "--set", "train.steps=5", code=138)
    words = shlex.split(started)
    assert words[:2] == ["srun", "torchrun"]
    options, (_, *command) = words[2 : words.index("-m")], words[words.index("-m") + 1 :]
    parsed = get_args_parser().parse_args([*options, "-m", "superpose", *command])
    assert (parsed.nnodes, parsed.nproc_per_node, parsed.rdzv_endpoint) == ("2", "8", "n1:29500")
    assert command == ["train", "cpu-tiny", "--out", "runs/one", "--resume", "--set", "train.steps=5"]
    assert "SIGUSR1" in parsed.signals_to_handle


def test_an_array_has_a_seed_in_each_job(job):
    started, *_ = job("slurm/seeds.sbatch", "runs", "mine", "cpu-tiny", "--lrs", "1e-3", code=138)
    assert started == "superpose compare cpu-tiny --lrs 1e-3 --seeds 3 --runs runs --name mine-seed3"
    known = CliRunner().invoke(app, ["compare", "--help"], env={"COLUMNS": "200"}).output
    assert set(re.findall(r"--\w+", started)) <= set(re.findall(r"--\w+", known))


@pytest.mark.parametrize("name", [*JOBS, "ray/compare.sbatch", "ray/submit.sh"])
def test_a_job_file_is_bash(name):
    assert subprocess.run(["bash", "-n", EXAMPLES / name], check=False).returncode == 0
