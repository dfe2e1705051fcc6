"""Scenarios of the demo from recordings: options of bags and units of depth reach their readers."""

import numpy as np
import pytest
from helpers.recordings import drive, record
from typer.testing import CliRunner

from worldstereo_ros.cli.main import app
from worldstereo_ros.evaluation.demo_scenarios import bag_scenario, sequence_scenario
from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.geometry.views import View
from worldstereo_ros.io.bags.views import BagError
from worldstereo_ros.io.posed_sequences import write_sequence
from worldstereo_ros.utils.errors import InputError


def test_options_of_a_bag(tmp_path):
    record(tmp_path / "drive")
    scenario = bag_scenario(tmp_path / "drive", 2, depth_unit="0.1mm")
    np.testing.assert_allclose(scenario.observed_views[0].depth, drive()[2][0] / 10, atol=1e-6)
    with pytest.raises(BagError, match="--tolerance"):
        bag_scenario(tmp_path / "drive", 2, tolerance=0.001)


def test_depth_unit_of_a_sequence(tmp_path):
    camera = Camera(32, 24, 30.0, 30.0, 15.5, 11.5)
    stamps, images, depths, base = drive()
    rows = zip(images, base, depths, stamps, strict=True)
    write_sequence(tmp_path, [View(image, camera, pose, depth, stamp_ns=stamp) for image, pose, depth, stamp in rows])
    scenario = sequence_scenario(tmp_path, 2, depth_unit="0.0005")
    np.testing.assert_allclose(scenario.observed_views[0].depth, depths[0] / 2, atol=1e-6)


@pytest.mark.parametrize("option", [("--tolerance", "1"), ("--rectified", "true"), ("--depth-unit", "mm")])
def test_options_of_recordings_need_one(tmp_path, option):
    result = CliRunner().invoke(app, ["demo", *option, "--out", str(tmp_path / "out")])
    assert result.exit_code == 1
    assert option[0] in result.output + result.stderr
    assert not isinstance(result.exception, InputError)
    assert not (tmp_path / "out").exists()
