"""`worldstereo imagine`."""

import numpy as np
import pytest
from helpers.textured_wall import textured_wall_views
from typer.testing import CliRunner

from worldstereo_ros.cli.main import app
from worldstereo_ros.io.datasets import open_sequence
from worldstereo_ros.io.posed_sequences import write_sequence
from worldstereo_ros.memory.archive import load_archive


@pytest.fixture
def sequence(tmp_path):
    write_sequence(tmp_path / "in", textured_wall_views())
    return tmp_path / "in"


def test_imagine_writes_results_and_a_map(sequence, tmp_path):
    out = tmp_path / "out"
    arguments = ["--path", "orbit", "--views", "3", "--observations", "2", "--out", str(out)]
    result = CliRunner().invoke(app, ["imagine", str(sequence), *arguments])
    assert result.exit_code == 0, result.output
    assert len(open_sequence(out / "imagined")) == 3
    assert len(open_sequence(out / "observed")) == 2
    assert len(load_archive(out / "world.wsmap").cloud) > 1000
    for name in ("contact_sheet.png", "imagined.mp4", "cloud.ply", "cloud.png"):
        assert (out / name).stat().st_size > 0


def test_imagine_follows_the_path_of_another_sequence(sequence, tmp_path):
    arguments = ["imagine", str(sequence), "--path", str(sequence), "--views", "2", "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    saved = open_sequence(tmp_path / "out" / "imagined")
    np.testing.assert_allclose(saved.poses[-1], textured_wall_views()[-1].world_from_camera, atol=1e-6)
