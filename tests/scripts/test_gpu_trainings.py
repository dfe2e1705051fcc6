"""Trainings side by side on a GPU machine: what comes back, also from one that fails or does not stop."""

import sys
import tarfile

import gpu_trainings
import pytest
import yaml

WRITES = """
import pathlib, signal, sys, time
folder = pathlib.Path(sys.argv[1])
(folder / "logs").mkdir(parents=True)
(folder / "logs" / "a.txt").write_text("half way")
(folder / "logs" / "b.part").write_text("unfinished")
def save(*_):
    (folder / "logs" / "a.txt").write_text("saved")
    print("saved", flush=True)
    raise SystemExit(3)
signal.signal(signal.SIGTERM, save)
print("step 1", flush=True)
time.sleep(float(sys.argv[2]))
"""


@pytest.fixture
def scripts(tmp_path, monkeypatch):
    """Trainings that are Python scripts: a quick one, one that ends when it is told to, one that fails."""
    script = tmp_path / "train.py"
    script.write_text(WRITES)

    def start(name, work, ends, toy):
        seconds = {"quick": "0", "slow": "60"}.get(name)
        arguments = [str(script), str(work / name), seconds] if seconds else ["-c", "1 / 0"]
        log = (work / f"{name}.log").open("w")
        return gpu_trainings.start_process([sys.executable, *arguments], stdout=log, stderr=log)

    training = gpu_trainings.Training(lambda folder, minutes, toy: [], ("logs",))
    monkeypatch.setattr(gpu_trainings, "TRAININGS", dict.fromkeys(("quick", "slow", "fails"), training))
    monkeypatch.setattr(gpu_trainings, "start", start)
    monkeypatch.setattr(gpu_trainings, "read_libraries", lambda: None)


def test_results_come_back_at_the_end_and_processes_are_asked_to_save(scripts, tmp_path, capsys):
    assert gpu_trainings.main(["--out", str(tmp_path / "out"), "--seconds", "8"]) == 0
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["logs.tar.gz", "quick.tar.gz", "slow.tar.gz"]
    for name, text in (("quick", b"half way"), ("slow", b"saved")):
        with tarfile.open(tmp_path / "out" / f"{name}.tar.gz") as tar:
            assert f"{name}/logs/b.part" not in tar.getnames()
            assert tar.extractfile(f"{name}/logs/a.txt").read() == text
    printed = capsys.readouterr().out
    assert "slow: exit status 3, saved" in printed
    assert "fails: exit status 1, ZeroDivisionError: division by zero" in printed


def test_a_result_that_is_too_large_is_left_out_and_said(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gpu_trainings, "MAX_FILE_BYTES", 10)
    (tmp_path / "a").write_text("x")
    gpu_trainings.write_tar(tmp_path / "a.tar.gz", {tmp_path / "a": tmp_path.relative_to("/") / "a"})
    assert "a.tar.gz would have" in capsys.readouterr().out
    assert [file.name for file in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("name", ["refine", "depth"])
def test_stages_get_a_configuration_of_their_own(tmp_path, name):
    command = gpu_trainings.TRAININGS[name].command(tmp_path / name, 2.0, False)
    config = yaml.safe_load((tmp_path / f"{name}.yaml").read_text())
    assert list(config["stages"]) == [name]
    assert config["worlds"]["loaders"] < 12
    assert command == [
        name,
        "--config",
        str(tmp_path / f"{name}.yaml"),
        "--minutes",
        "2.00",
        "--out",
        str(tmp_path / name),
    ]


@pytest.mark.parametrize("name", list(gpu_trainings.TRAININGS))
def test_commands_exist(tmp_path, name):
    from typer.testing import CliRunner

    from worldstereo_ros.cli.main import app

    command = gpu_trainings.TRAININGS[name].command(tmp_path / name, 2.0, True)
    result = CliRunner().invoke(app, ["train", *command[:-4], "--help"])
    assert result.exit_code == 0, result.output
