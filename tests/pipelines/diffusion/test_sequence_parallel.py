"""Two processes give what one gives."""

import json
import os
import subprocess
import sys

import pytest
from helpers.checkpoints import DMD_VARIANT, write_checkpoint
from helpers.paths import HELPERS, REPOSITORY

from worldstereo_ros.pipelines.diffusion.distributed import is_worker, process_count


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What two processes under torchrun found, each with one thread."""
    folder = tmp_path_factory.mktemp("parallel")
    write_checkpoint(folder / "model", DMD_VARIANT, encoders=True)
    file = folder / "found.json"
    run = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(HELPERS / "two_processes.py")]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "tests"), os.environ.get("PYTHONPATH", "")]),
        "OMP_NUM_THREADS": "1",
        "NUMBA_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, *run, str(folder / "model"), str(file)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(file.read_text())


@pytest.mark.parametrize(
    "case",
    [
        "references carried on",
        "references frozen",
        "no references",
        "paired",
        "backbone alone",
        "uneven",
        "weights",
        "weights and tokens",
        "mixed types",
    ],
)
def test_two_processes_give_what_one_gives(found, case):
    assert found[case] <= 1e-5


def test_each_process_works_on_its_part_of_the_tokens(found):
    assert found["tokens"] == (4 + 3) * 6 / 2


def test_what_cannot_be_shared_is_a_sentence(found):
    assert "2 and 1 heads, which do not divide among 2 processes" in found["heads"]
    assert "control_backend torch" in found["replaced"]


def test_each_process_holds_its_part_of_the_weights(found):
    assert 0.4 < found["held"] < 0.6


def test_first_process_imagines_with_the_help_of_the_other(found):
    assert found["pipeline"] <= 1


@pytest.mark.parametrize(("rank", "size", "follows"), [("0", "2", False), ("1", "2", True), ("0", "1", False)])
def test_who_follows(monkeypatch, rank, size, follows):
    values = {"RANK": rank, "WORLD_SIZE": size, "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    assert is_worker() is follows
    monkeypatch.delenv("MASTER_PORT")
    assert process_count() == 1
    assert not is_worker()
