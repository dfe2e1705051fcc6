"""Sequence parallelism: two processes compute what one computes."""

import json
import os
import subprocess
import sys

import pytest
from helpers.checkpoints import DMD_VARIANT, write_checkpoint
from helpers.paths import HELPERS, REPOSITORY

from worldstereo_ros.pipelines.diffusion.distributed import is_worker, process_count


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Measurements of two processes under torchrun, each with one thread."""
    folder = tmp_path_factory.mktemp("parallel")
    write_checkpoint(folder / "model", DMD_VARIANT, encoders=True)
    file = folder / "results.json"
    run = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(HELPERS / "two_processes.py")]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "tests"), os.environ.get("PYTHONPATH", "")]),
        "OMP_NUM_THREADS": "1",
        "NUMBA_NUM_THREADS": "1",
    }
    process = subprocess.run(
        [sys.executable, *run, str(folder / "model"), str(file)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert process.returncode == 0, process.stdout + process.stderr
    return json.loads(file.read_text())


@pytest.mark.parametrize(
    "case",
    [
        "references updated",
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
def test_two_processes_equal_one(results, case):
    assert results[case] <= 1e-5


def test_each_process_computes_half_of_the_tokens(results):
    assert results["tokens"] == (4 + 3) * 6 / 2


def test_unsupported_models_raise(results):
    assert "2 and 1 heads, which are not multiples of 2 processes" in results["heads"]
    assert "control_backend torch" in results["replaced"]


def test_each_process_holds_half_of_the_weights(results):
    assert 0.4 < results["held_weights"] < 0.6


def test_pipeline_on_two_processes_equals_one(results):
    assert results["pipeline"] <= 1


@pytest.mark.parametrize(("rank", "size", "expected"), [("0", "2", False), ("1", "2", True), ("0", "1", False)])
def test_is_worker(monkeypatch, rank, size, expected):
    values = {"RANK": rank, "WORLD_SIZE": size, "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    assert is_worker() is expected
    monkeypatch.delenv("MASTER_PORT")
    assert process_count() == 1
    assert not is_worker()
