"""Output folders of commands: checked first, replaced as a whole, and nothing of the user's is touched."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.recordings import record
from helpers.textured_wall import textured_wall_views
from typer.testing import CliRunner

from worldstereo_ros.cli.main import app
from worldstereo_ros.io.datasets import open_sequence
from worldstereo_ros.io.images import write_image
from worldstereo_ros.io.posed_sequences import write_sequence
from worldstereo_ros.memory.archive import load_archive
from worldstereo_ros.visualization.viewer.loading import load_viewable

COMMANDS = [
    ["imagine", "seq", "--model", "geometric", "--views", "2"],
    ["panorama", "room.png", "--model", "geometric", "--height", "64"],
    ["demo", "--sequence", "seq", "--model", "geometric", "--views", "2"],
]


@pytest.fixture
def recordings(tmp_path, monkeypatch):
    """The current folder: seq/ is a posed sequence, room.png a panorama."""
    monkeypatch.chdir(tmp_path)
    write_sequence(tmp_path / "seq", textured_wall_views())
    write_image(tmp_path / "room.png", np.full((64, 128, 3), 90, np.uint8))
    return tmp_path


def run(*arguments: str):
    return CliRunner().invoke(app, list(arguments))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def skip_demo_without_ros(command: list[str]) -> None:
    if command[0] == "demo":
        pytest.importorskip("worldstereo_ros.action", reason="the demo needs ROS 2 and the built messages")


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
@pytest.mark.parametrize(
    ("out", "words"),
    [
        (".", "lies in the output folder"),
        ("seq", "imagine"),
        ("taken", "is a file"),
        ("taken/out", "could not be written"),
        ("mine", "is in the way"),
    ],
)
def test_output_is_checked_before_anything_is_computed(recordings, monkeypatch, command, out, words):
    skip_demo_without_ros(command)
    (recordings / "taken").write_text("mine")
    (recordings / "mine" / "imagined").mkdir(parents=True)
    (recordings / "mine" / "imagined" / "notes.txt").write_text("mine")
    before = contents(recordings)

    def compute(*_, **__):
        raise AssertionError("computed before the output was checked")

    monkeypatch.setattr("worldstereo_ros.pipelines.auto.load_pipeline", compute)
    monkeypatch.setattr("worldstereo_ros.evaluation.demo_scenarios.sequence_scenario", compute)
    if out == "seq" and command[0] == "panorama":
        pytest.skip("the folder is no source of a panorama")
    result = run(*command, "--out", out)
    assert result.exit_code == 1
    text = " ".join(result.stderr.split())
    assert text.startswith("Error: ")
    assert (words if out != "seq" else "lies in the output folder") in text
    assert contents(recordings) == before


def test_a_shorter_run_leaves_no_frames_of_a_longer_one(recordings):
    (recordings / "out").mkdir()
    (recordings / "out" / "notes.txt").write_text("mine")
    for views in ("5", "2"):
        result = run("imagine", "seq", "--model", "geometric", "--views", views, "--out", "out")
        assert result.exit_code == 0, result.output
    assert len(list((recordings / "out" / "imagined" / "frames").iterdir())) == 2
    assert len(open_sequence(recordings / "out" / "imagined")) == 2
    assert (recordings / "out" / "notes.txt").read_text() == "mine"


def test_demo_does_not_remove_the_recording_that_it_is_given(tmp_path, monkeypatch):
    pytest.importorskip("worldstereo_ros.action", reason="the demo needs ROS 2 and the built messages")
    monkeypatch.chdir(tmp_path)
    record(tmp_path / "bag")
    before = contents(tmp_path)
    result = run("demo", "--bag", "bag", "--out", ".", "--views", "2", "--model", "geometric")
    assert result.exit_code == 1
    assert "The source bag lies in the output folder" in " ".join(result.stderr.split())
    # Another recording of the same name, which the demo is not given, is as safe.
    other = tmp_path / "elsewhere"
    shutil.copytree(tmp_path / "bag", other / "bag")
    result = run("demo", "--bag", "bag", "--out", "elsewhere", "--views", "2", "--model", "geometric")
    assert result.exit_code == 1
    assert "is in the way" in " ".join(result.stderr.split())
    assert {name: content for name, content in contents(tmp_path).items() if not name.startswith("else")} == before
    assert contents(other) == before


def test_folders_that_are_not_utf8_are_read_and_written(tmp_path):
    """In a process of its own, which OpenCV and Open3D ended before."""
    source, out = (tmp_path / os.fsdecode(name) for name in (b"s\xff\xfe", b"o\xff\xfe"))
    write_sequence(source, textured_wall_views())
    command = [sys.executable, "-m", "worldstereo_ros.cli", "imagine", source, "--model", "geometric", "--views", "2"]
    done = subprocess.run([*command, "--out", out], capture_output=True, check=False, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(open_sequence(out / "imagined")) == 2
    assert len(load_archive(out / "world.wsmap").cloud)
    assert len(load_viewable(out).imagined) == 2
    assert len(load_viewable(out / "cloud.ply").points)
