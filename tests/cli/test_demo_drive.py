"""`worldstereo demo --drive` without the drive: what is missing, what does not go together, and what it tells."""

from __future__ import annotations

import importlib.util

import pytest
from typer.testing import CliRunner

from worldstereo_ros.cli import demo_node
from worldstereo_ros.cli.demo_drive import describe, run_drive
from worldstereo_ros.cli.main import app

FIGURES = {
    "travel_m": 11.6, "seconds": 27.5, "top_speed_before_corner": 0.8, "speed_at_corner": 0.31, "closest_m": 0.08,
    "collisions": 0, "obstacle_seen": {"seconds": 12.4, "distance_m": 1.72, "speed": 0.315},
    "slow": [{"from_s": 6.5, "until_s": 25.5, "limit": 0.4, "before_corner_m": 1.6}],
    "paths": [{"taken": "middle"}, {"taken": "outside"}],
}  # fmt: skip


def test_missing_messages_are_named_with_what_to_do(tmp_path, monkeypatch):
    pytest.importorskip("rclpy", reason="without ROS another sentence comes first")
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == "nav2_msgs" else find(name))
    with pytest.raises(
        demo_node.DemoError, match=r"messages of nav2_msgs. Run `make setup`.*ros-\$ROS_DISTRO-nav2-msgs"
    ):
        run_drive(tmp_path / "out", model="geometric")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("more", [["--bag", "x"], ["--sequence", "x"], ["--scene", "lot"]])
def test_drive_takes_no_recording_and_no_scene(tmp_path, more):
    result = CliRunner().invoke(app, ["demo", "--drive", "--out", str(tmp_path / "out"), *more])
    assert result.exit_code != 0
    assert "takes place in a procedural corridor" in str(result.exception) + result.output
    assert not (tmp_path / "out").exists()


def test_sentences_say_when_it_was_slow_and_what_it_saw():
    text = " ".join(describe(FIGURES))
    assert "0.80 m/s before the corner, 0.31 m/s at it" in text
    assert "Slow from 6.5 s to 25.5 s, 1.6 m before the corner: ~/speed_mask allowed 40%" in text
    assert "seen at 12.4 s, 1.7 m away, at 0.32 m/s" in text or "at 0.31 m/s" in text
    assert "middle -> outside" in text
    assert "0 collisions" in text
    never = FIGURES | {"slow": [], "obstacle_seen": None}
    assert "never limited the speed" in " ".join(describe(never))
