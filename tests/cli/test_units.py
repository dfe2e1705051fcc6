"""Units and degenerate paths on the command line: depth units, arbitrary scales, paths without length."""

import json
from dataclasses import replace

import numpy as np
import pytest
from helpers.textured_wall import textured_wall_views
from typer.testing import CliRunner

from worldstereo_ros.cli.main import app
from worldstereo_ros.io.datasets import open_sequence
from worldstereo_ros.io.posed_sequences import write_sequence
from worldstereo_ros.memory.archive import load_archive
from worldstereo_ros.utils.errors import InputError


def run(*arguments) -> str:
    """Output of a command that must succeed, in one line."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return " ".join(result.output.split())


def fail(*arguments) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code != 0, result.output
    if isinstance(result.exception, InputError):
        return str(result.exception)
    return " ".join((result.output + result.stderr).split())


@pytest.fixture
def sequence(tmp_path):
    write_sequence(tmp_path / "in", textured_wall_views())
    return tmp_path / "in"


@pytest.fixture
def arbitrary(tmp_path):
    write_sequence(tmp_path / "arbitrary", [replace(view, metric=False) for view in textured_wall_views()])
    return tmp_path / "arbitrary"


IMAGINE = ("imagine", "--model", "geometric", "--views", "2")


def test_depth_unit_of_a_sequence(sequence, tmp_path):
    views = textured_wall_views()
    text = run(*IMAGINE, sequence, "--observations", "3", "--depth-unit", "0.01", "--out", tmp_path / "far")
    assert "The depth of in" in text
    assert "--depth-unit" in text
    right = run(*IMAGINE, sequence, "--observations", "3", "--depth-unit", "mm", "--out", tmp_path / "right")
    assert "--depth-unit" not in right
    np.testing.assert_allclose(open_sequence(tmp_path / "right" / "observed")[0].depth, views[0].depth, atol=1e-3)
    assert "depth unit is 'yard'" in fail(*IMAGINE, sequence, "--depth-unit", "yard", "--out", tmp_path / "no")


def test_an_arbitrary_unit_is_said_and_kept(sequence, arbitrary, tmp_path):
    out = tmp_path / "out"
    assert "The unit of arbitrary is arbitrary" in run(*IMAGINE, arbitrary, "--out", out)
    assert json.loads((out / "results.json").read_text())["metric"] is False
    assert load_archive(out / "world.wsmap").bank.metric is False
    assert not open_sequence(out / "imagined").metric
    assert not open_sequence(out / "observed").metric
    assert "not in metres" in run("export", out / "world.wsmap", tmp_path / "cloud.ply")
    assert "is arbitrary" not in run(*IMAGINE, sequence, "--out", tmp_path / "metres")
    assert json.loads((tmp_path / "metres" / "results.json").read_text())["metric"] is True
    for source, path in ((sequence, arbitrary), (arbitrary, sequence)):
        assert "the two are not mixed" in fail(*IMAGINE, source, "--path", path, "--out", tmp_path / "mixed")


def test_a_path_without_length_is_one_view(sequence, tmp_path):
    poses = tmp_path / "poses.txt"
    poses.write_text("".join(f"{i} 1 2 3 0 0 0 1\n" for i in range(4)))
    text = run("imagine", sequence, "--model", "geometric", "--path", poses, "--views", "9", "--out", tmp_path / "out")
    assert "1 view instead of 9, since the 4 poses of" in text
    assert len(open_sequence(tmp_path / "out" / "imagined")) == 1
    assert "The distance is 0" in fail("imagine", sequence, "--distance", "0", "--out", tmp_path / "no")


def test_a_damaged_frame_is_left_out_and_counted(sequence, tmp_path):
    frames = sorted((sequence / "frames").iterdir())
    frames[0].write_bytes(frames[0].read_bytes()[:200])
    text = run(*IMAGINE, sequence, "--observations", "2", "--out", tmp_path / "out")
    assert "1 damaged frame left out. The first: " in text
    assert frames[0].name in text.replace(" ", "")
    observed = open_sequence(tmp_path / "out" / "observed")
    views = textured_wall_views()
    expected = [views[1].world_from_camera, views[-1].world_from_camera]
    np.testing.assert_allclose(observed.poses, expected, atol=1e-6)
    assert "damaged" in fail(*IMAGINE, sequence, "--observe", "0", "--out", tmp_path / "no")
    for frame in frames:
        frame.write_bytes(frame.read_bytes()[:200])
    failed = fail(*IMAGINE, sequence, "--out", tmp_path / "no")
    assert f"None of the {len(frames)} frames" in failed
