"""Errors of commands: one sentence on stderr, exit status 1."""

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
import typer
from helpers.paths import REPOSITORY
from helpers.textured_wall import textured_wall_views
from typer.testing import CliRunner

from worldstereo_ros.cli.errors import DEBUG_VARIABLE, ErrorReportingGroup
from worldstereo_ros.cli.main import app
from worldstereo_ros.io.posed_sequences import write_sequence
from worldstereo_ros.utils.atomic_files import WriteError
from worldstereo_ros.utils.errors import InputError, first_line


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["imagine"], "Name one source"),
        (["imagine", "{seq}", "--bag", "a.mcap"], "Name one source"),
        (["imagine", "nowhere"], "nowhere does not exist"),
        (["imagine", "{seq}", "--path", "sideways"], "sideways"),
        (["imagine", "{seq}", "--model", "crystal-ball"], "crystal-ball"),
        (["imagine", "{seq}", "--device", "abacus"], "abacus"),
        (["imagine", "--bag", "nowhere.mcap"], "does not exist"),
        (["export", "nowhere.wsmap", "a.ply"], "nowhere.wsmap"),
        (["export", "small", "a.ply"], "A model is exported as ONNX"),
        (["export", "{seq}", "a.ply"], "is a folder, and no map"),
        (["view", "nowhere"], "nowhere"),
        (["inspect", "geometric"], "nothing to inspect"),
        (["evaluate", "--data", "nowhere"], "nowhere does not exist"),
        (["evaluate", "--data", "nowhere", "--depth", "--protocol", "single"], "--depth evaluates depth only"),
        (["demo", "--sequence", "nowhere"], "nowhere"),
        (["demo", "--sequence", "{seq}", "--bag", "a.mcap"], "Name one recording"),
    ],
)
def test_command_ends_with_one_sentence(arguments, words, tmp_path, monkeypatch):
    if arguments[0] == "demo":
        pytest.importorskip("worldstereo_ros.action", reason="the demo needs ROS 2 and the built messages")
    write_sequence(tmp_path / "seq", textured_wall_views())
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, [argument.format(seq=tmp_path / "seq") for argument in arguments])
    assert result.exit_code == 1, result.output
    assert words in " ".join(result.stderr.split())
    assert result.stderr.startswith("Error: ")
    assert "Error" not in result.stdout
    assert "Traceback" not in result.output


def run_failing_command(error):
    """Runs a command that raises `error` in a group and a nested group."""
    nested, group = typer.Typer(), typer.Typer(cls=ErrorReportingGroup, pretty_exceptions_enable=False)

    @nested.command()
    def fail():
        raise error

    @nested.command()
    def other():
        pass

    group.add_typer(nested, name="nested")
    return CliRunner().invoke(group, ["nested", "fail"])


@pytest.fixture(autouse=True)
def no_debug(monkeypatch):
    monkeypatch.delenv(DEBUG_VARIABLE, raising=False)


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (InputError("The width is 3; 4 was expected."), "Error: The width is 3; 4 was expected.\n"),
        (OSError("The disk is gone."), "Error: The disk is gone.\n"),
        (
            FileNotFoundError(errno.ENOENT, "No such file or directory", "a.png"),
            "Error: No such file or directory: a.png\n",
        ),
    ],
)
def test_expected_errors_are_printed_as_they_are(error, sentence):
    result = run_failing_command(error)
    assert result.exit_code == 1
    assert result.stderr == sentence
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (
            WriteError(Path("a.ply"), "No space left on device", code=errno.ENOSPC),
            "a.ply could not be written: No space",
        ),
        (OSError(errno.ENOSPC, "No space left on device"), "Error: No space left on device\n"),
        (PermissionError(errno.EACCES, "Permission denied", "a/b"), "Error: Permission denied: a/b\n"),
        (OSError(errno.EROFS, "Read-only file system", b"a\xff"), "Error: Read-only file system: b'a"),
    ],
)
def test_errors_of_the_disk_are_one_sentence(error, sentence):
    result = run_failing_command(error)
    assert result.exit_code == 1
    assert sentence in result.stderr
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1


def test_interruption_is_one_word_and_its_own_status():
    result = run_failing_command(KeyboardInterrupt())
    assert result.exit_code == 130
    assert result.stderr == "Interrupted.\n"


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nSee documentation"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
        MemoryError(),
    ],
)
def test_out_of_memory_says_what_to_do(error):
    result = run_failing_command(error)
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: The device is out of memory (")
    assert "fewer views" in result.stderr
    assert result.stderr.count("\n") == 1


def test_missing_package_points_to_the_doctor():
    result = run_failing_command(ModuleNotFoundError("No module named 'open3d'", name="open3d"))
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: No module named 'open3d'. Run `worldstereo doctor`")


@pytest.mark.parametrize(
    "error", [KeyError("depth"), RuntimeError("shapes differ\nsee the manual"), ValueError("bad"), AssertionError()]
)
def test_unexpected_errors_name_the_debug_variable(error):
    result = run_failing_command(error)
    assert result.exit_code == 1
    assert result.stderr.startswith(f"Unexpected error: {type(error).__name__}")
    assert "Set WORLDSTEREO_DEBUG=1 for the traceback." in result.stderr
    assert result.stderr.count("\n") == 1
    assert "Traceback" not in result.output


def test_debug_variable_prints_the_traceback(monkeypatch):
    monkeypatch.setenv(DEBUG_VARIABLE, "1")
    result = run_failing_command(RuntimeError("shapes differ"))
    assert result.exit_code == 1
    assert "Traceback (most recent call last)" in result.stderr
    assert "raise error" in result.stderr
    assert "Unexpected error: RuntimeError: shapes differ." in result.stderr
    assert "Set WORLDSTEREO_DEBUG" not in result.stderr


def test_exits_and_usage_errors_keep_their_status():
    assert run_failing_command(typer.Exit(3)).exit_code == 3
    assert run_failing_command(typer.Exit(0)).exit_code == 0
    assert run_failing_command(typer.BadParameter("not this")).exit_code == 2
    assert CliRunner().invoke(app, ["imagine", "--sideways"]).exit_code == 2


def test_process_reports_errors_as_the_runner_does():
    command = [sys.executable, "-m", "worldstereo_ros.cli", "imagine", "nowhere"]
    done = subprocess.run(command, cwd=REPOSITORY, env=dict(os.environ), capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("Error: nowhere does not exist")
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("number", "status", "word"), [(signal.SIGINT, 130, "Interrupted."), (signal.SIGTERM, 143, "Terminated.")]
)
@pytest.mark.parametrize("stage", ["typer.main", "numpy", "observing"])
def test_interrupted_commands_end_without_traceback_and_half_files(tmp_path, number, status, word, stage):
    write_sequence(tmp_path / "seq", textured_wall_views())
    out = tmp_path / "out"
    command = [sys.executable, "-u", "-X", "importtime", "-m", "worldstereo_ros.cli", "imagine", str(tmp_path / "seq")]
    command += ["--model", "geometric", "--views", "400", "--out", str(out)]
    with subprocess.Popen(
        command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        imported = []
        reader = threading.Thread(target=lambda: [imported.append(line) for line in process.stderr])
        reader.start()
        if stage == "observing":
            assert process.stdout.readline()  # what was observed; the views are imagined next
        while stage != "observing" and not any(line.endswith(f" {stage}\n") for line in imported):
            time.sleep(0.01)
        process.send_signal(number)
        assert process.wait(timeout=60) == status
        process.stdout.read()
        reader.join()
    errors = [line.strip() for line in imported if not line.startswith("import time:")]
    assert errors == [word]
    assert not out.exists() or not list(out.rglob(".*.partial"))
    assert not (out / "cloud.ply").exists()


def test_an_interruption_that_python_could_not_raise_is_raised_again():
    code = """
import signal, time
from worldstereo_ros.cli.interrupts import prepare_process
prepare_process()
class Finalised:
    def __del__(self):
        signal.raise_signal(signal.SIGINT)
        time.sleep(0)
thing = Finalised()
del thing
time.sleep(20)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, timeout=15)
    assert (done.returncode, done.stderr) == (130, "Interrupted.\n")


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_paths_that_the_terminal_cannot_show_are_escaped(tmp_path, encoding):
    environment = dict(os.environ, PYTHONIOENCODING=f"{encoding}:strict", PYTHONPATH=str(REPOSITORY))
    for name, shown in ((b"gone \xff\xfe", "gone "), ("weg ü".encode(), "weg ")):
        command = [sys.executable, "-m", "worldstereo_ros.cli", "export", name + b".wsmap", "a.ply"]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, check=False)
        assert done.returncode == 1
        assert done.stderr.startswith(b"Error: There is no map " + shown.encode())
        assert b"Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("no such op.\n  at line 3"), "no such op"),
        (ValueError(""), "ValueError"),
        (ValueError(" \n "), "ValueError"),
        (KeyError("a"), "'a'"),
    ],
)
def test_first_line_of_other_packages_errors(error, line):
    assert first_line(error) == line
