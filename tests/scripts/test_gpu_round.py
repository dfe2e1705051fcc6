"""A round on a GPU, at toy size on the CPU: checks, a crash among them, training, an interruption, what comes back."""

import dataclasses
import json
import signal
import subprocess
import tarfile
import time
from pathlib import Path

import full_size
import gpu_checks
import gpu_report
import gpu_round
import pytest
import torch
import yaml
from gpu_place import CheckFailed, Place, near
from helpers.bare_environment import bare_python
from helpers.training_runs import SMOKE

from worldstereo_ros.pipelines.worldstereo.pipeline import WorldStereoPipeline
from worldstereo_ros.training.config import describe
from worldstereo_ros.training.packaging import package_weights

pytestmark = pytest.mark.usefixtures("one_thread")


# --- checks ---


def test_every_check_is_in_one_lane():
    assert sorted(name for lane in gpu_round.LANES for name in lane) == sorted(gpu_checks.CHECKS)


@pytest.mark.parametrize("name", ["rendering", "bfloat16", "float8", "14 B forward", "FlexAttention"])
def test_check_passes_on_the_cpu(tmp_path, name):
    found = gpu_checks.run_check(name, Place(torch.device("cpu"), True, tmp_path))
    assert found["status"] in ("ok", "skipped"), found
    assert found["status"] == "skipped" or found["figures"]


def test_wrong_results_fail_and_what_needs_a_gpu_is_skipped(tmp_path, monkeypatch):
    place = Place(torch.device("cpu"), True, tmp_path)
    wrong_scale = 1.5 * full_size.FP8_MAX
    monkeypatch.setattr(full_size, "FP8_MAX", wrong_scale)  # beyond the largest number, which saturates or is NaN
    if gpu_checks.run_check("float8", place)["status"] == "skipped":
        pytest.skip("no float8 product on this CPU")
    found = gpu_checks.run_check("float8", place)
    assert found["status"] == "failed"
    assert "relative error" in found["message"]
    found = gpu_checks.run_check("small model, CUDA graph", place)
    assert (found["status"], found["message"]) == ("skipped", "a CUDA graph needs a GPU")
    with pytest.raises(CheckFailed, match="NaN: relative error nan"):
        near(torch.tensor([1.0, float("nan")]), torch.ones(2), 1.0, "NaN")


FAKE_CHECKS = """
import json, os, signal, sys, time
for name in sys.argv[3:]:
    print(json.dumps({"begins": name}), flush=True)
    print("some library says something", flush=True)
    if name == "rendering":
        os.kill(os.getpid(), signal.SIGSEGV)
    if name == "14 B forward":
        time.sleep(600)
    print(json.dumps({"name": name, "status": "ok", "figures": {"a": 1.5}, "message": "", "seconds": 0.1}), flush=True)
    if name == "memory":
        sys.exit(17)
"""


def test_a_crash_or_an_endless_check_does_not_stop_the_others(tmp_path, monkeypatch, capsys):
    (tmp_path / "gpu_checks.py").write_text(FAKE_CHECKS)
    monkeypatch.setattr(gpu_round, "SCRIPTS", tmp_path)
    names = ["device", "rendering", "memory", "small model", "14 B forward", "float8"]
    arguments = ["--out", str(tmp_path / "out"), "--device", "cpu", "--checks-only", "--check-seconds", "4"]
    status = gpu_round.main([*arguments, *(f"--check={name}" for name in names)])
    assert status == 1
    checks = json.loads((tmp_path / "out" / "report.json").read_text())["checks"]
    results = {name: (check["status"], check["message"]) for name, check in checks.items()}
    assert results == {
        "device": ("ok", ""),
        "rendering": ("failed", "the process ended with signal 11: some library says something"),
        "memory": ("ok", ""),
        "small model": ("ok", ""),
        "14 B forward": ("failed", "not done after 4 s"),
        "float8": ("skipped", "not done after 4 s"),
    }
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("small model") and " ok " in line and "a 1.5" in line for line in lines)


def check(status, **figures):
    return {"status": status, "figures": figures}


@pytest.mark.parametrize(("checks", "expected"), [
    ({}, {}),
    ({"worlds on the device": check("failed"), "loader processes": check("failed")},
     {"on_device": False, "loaders": 0}),
    ({"training at full batch, compiled": check("failed")}, {"compile": False}),
    ({"training at full batch": check("ok", clips_per_second=100.0),
      "training at full batch, compiled": check("ok", clips_per_second=105.0)}, {"compile": False}),
    ({"training at full batch": check("ok", clips_per_second=100.0),
      "training at full batch, compiled": check("ok", clips_per_second=150.0)}, {}),
])  # fmt: skip
def test_training_leaves_out_what_failed(checks, expected):
    assert gpu_round.training_settings(checks) == expected


# --- what comes back ---


def test_tars_hold_every_file_and_are_small_enough(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_report, "TAR_BYTES", 10_000)
    package, out = tmp_path / "package", tmp_path / "out"
    (package / "base" / "vae").mkdir(parents=True)
    out.mkdir()
    (out / "weights-7.tar").write_bytes(b"of an earlier, larger package")
    sizes = {"a": 7500, "b": 4000, "base/c": 3500, "base/vae/d": 10}
    for name, size in sizes.items():
        (package / name).write_bytes(name.encode() * (size // len(name)))
    written = gpu_report.write_tars(package, out)
    assert sorted(out.iterdir()) == sorted(written)
    assert len(written) == 2
    for file in written:
        with tarfile.open(file) as tar:
            tar.extractall(tmp_path / "again", filter="data")
    for name in sizes:
        assert (tmp_path / "again" / name).read_bytes() == (package / name).read_bytes()
    (package / "large").write_bytes(bytes(9999))
    with pytest.raises(ValueError, match="large has 11023 bytes; at most 10000 fit"):
        gpu_report.write_tars(package, out)
    (package / "large").unlink()
    for index in range(6):
        (package / f"large{index}").write_bytes(bytes(8000))
    with pytest.raises(ValueError, match="the weights take 8 files; at most 5 come back"):
        gpu_report.write_tars(package, out)


def test_table_of_the_training(tmp_path):
    settings = {"batch": 32, "frames": 13}
    lines = [
        {"round": 0, "resumed": True, "settings": settings, "worlds": 100},
        {"step": 0, "seconds": 0.0, "validation_psnr": 26.8},
        {"step": 20, "seconds": 1.0, "new_clips": 0.25},
        {"step": 40, "seconds": 2.0, "new_clips": 0.35},
        {"step": 50, "seconds": 4.0, "validation_psnr": 27.1},
    ]
    (tmp_path / "finetune.jsonl").write_text("\n".join(map(json.dumps, lines)) + '\n{"step": 6')
    checks = {"device": check("ok", tflops=800.0), "training at full batch": check("ok", tflop_a_clip=0.1)}
    stage = gpu_report.training_table(tmp_path, {"checks": checks})["finetune"]
    assert stage["images_per_second"] == 50 * 32 * 13 / 4
    assert stage["new_clips"] == pytest.approx(0.3)
    assert stage["share_of_matrix_rate"] == pytest.approx(0.1 * (50 * 32 / 4) / 800)
    text = gpu_report.page({"training": {"finetune": stage}, "state": "finished"})
    assert "| finetune | 50 | 0.1 | 32 | 5200 | 30% | 5.0% | psnr 26.8 to 27.1 |" in text


def test_folder_with_files_is_not_written_to(tmp_path, capsys):
    (tmp_path / "thesis.txt").write_text("x")
    assert gpu_round.main(["--out", str(tmp_path), "--checks-only"]) == 2
    assert "give an empty folder" in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.fixture
def round_command(trained, training_worlds, tmp_path):
    """A round with the smallest networks, which starts from a package, in a Python with few packages."""
    package_weights(trained, tmp_path / "packed")
    stage = dataclasses.replace(SMOKE.stages["finetune"], minutes=1.0, steps=0, validate_minutes=0.03)
    config = dataclasses.replace(SMOKE, start_from=str(tmp_path / "packed"), stages={"finetune": stage})
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(describe(config)))
    (tmp_path / "site").mkdir()
    python, environment = bare_python(tmp_path / "site")
    script = Path(gpu_round.__file__)
    command = [python, script, "--out", tmp_path / "out", "--device", "cpu", "--config", tmp_path / "mine.yaml",
               "--worlds", training_worlds, "--minutes", "5", "--threads", "1", "--no-checks"]  # fmt: skip
    return [str(word) for word in command], environment | {"OMP_NUM_THREADS": "1"}


@pytest.mark.slow
def test_a_round_saves_as_it_goes_and_when_it_is_terminated(round_command, tmp_path):
    command, environment = round_command
    out = tmp_path / "out"
    process = subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    ends = time.monotonic() + 120
    while not (out / "weights-1.tar").is_file() and process.poll() is None and time.monotonic() < ends:
        time.sleep(0.1)
    assert (out / "weights-1.tar").is_file(), process.communicate()[0]
    first = (out / "weights-1.tar").read_bytes()
    saved = json.loads((out / "report.json").read_text())
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == gpu_round.INTERRUPTED, output
    assert "its weights are saved" in " ".join(output.split())
    report = json.loads((out / "report.json").read_text())
    assert report["state"] == gpu_round.CUT
    assert not report["packaging_failed"]
    stage = report["training"]["finetune"]
    assert stage["steps"] >= saved.get("training", {}).get("finetune", {"steps": 0})["steps"]
    assert stage["images_per_second"] > 0
    assert set(stage["start"]) == set(stage["end"]) == {"loss", "psnr", "psnr_holes"}
    assert "| finetune |" in (out / "report.md").read_text()
    files = list(out.iterdir())
    assert {file.name for file in files} == {"report.json", "report.md", "pictures.jpg", "weights-1.tar"}
    assert len(files) <= gpu_report.MAX_FILES
    assert max(file.stat().st_size for file in files) < gpu_report.MAX_FILE_BYTES
    assert (out / "weights-1.tar").read_bytes() != first
    with tarfile.open(out / "weights-1.tar") as tar:
        tar.extractall(tmp_path / "unpacked", filter="data")
    WorldStereoPipeline.from_pretrained(tmp_path / "unpacked", "memory-dmd")
