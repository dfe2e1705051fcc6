"""Every example runs as it stands, prints its result and writes readable files."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import cv2
import pytest
from helpers.paths import REPOSITORY

from worldstereo_ros.io.bags.files import Bag
from worldstereo_ros.io.point_clouds import read_point_cloud
from worldstereo_ros.io.posed_sequences import open_posed
from worldstereo_ros.io.video import video_size
from worldstereo_ros.memory.archive import load_archive

EXAMPLES = sorted((REPOSITORY / "examples").glob("*.py"))
MAX_LINES = 60
TIMEOUT_S = 240  # a hang; the examples say less than a minute on two idle cores


def run(name: str, folder: Path, **environment: str) -> str:
    """Run an example without arguments in `folder` and return what it prints."""
    script = REPOSITORY / "examples" / f"{name}.py"
    # `python script` puts the script's folder on the path and not the repository; an installation makes up for that.
    path = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH", "")]))
    result = subprocess.run(
        [sys.executable, str(script)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path, **environment},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    assert result.returncode == 0, f"{result.stdout}\n{result.stderr}"
    for written in re.findall(r"example_out/[\w./]+", result.stdout):
        assert (folder / written).exists(), f"{written} was not written"
    return result.stdout


def assert_image(path: Path, min_size: int = 100) -> None:
    """The file is an image with some content."""
    image = cv2.imread(str(path))
    assert image is not None, f"{path} is no image"
    assert min(image.shape[:2]) >= min_size
    assert image.std() > 10


def assert_results(folder: Path, views: int) -> None:
    """The files of `write_results` open and agree on the number of views."""
    assert_image(folder / "contact_sheet.png")
    assert video_size(folder / "imagined.mp4")[2] == views
    assert len(open_posed(folder / "imagined")) == views
    points, _, observed = read_point_cloud(folder / "cloud.ply")
    assert len(points) > 10_000
    assert observed is not None
    assert observed.any()


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_has_fewer_lines_than_the_limit_and_a_docstring(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) < MAX_LINES
    assert f"python examples/{path.name}" in text.split('"""')[1]


def test_every_example_has_a_test():
    tested = {name.removeprefix("test_example_") for name in globals() if name.startswith("test_example_")}
    assert {path.stem[3:] for path in EXAMPLES} <= tested


def test_example_imagine_from_photo(tmp_path):
    out = run("00_imagine_from_photo", tmp_path)
    assert "view 8/8" in out
    assert_image(tmp_path / "example_out/photo/photo.png")
    assert_results(tmp_path / "example_out/photo", 8)


def test_example_imagine_from_bag(tmp_path):
    out = run("01_imagine_from_bag", tmp_path)
    assert "observed 8 views" in out
    assert_results(tmp_path / "example_out/bag", 8)
    with Bag(tmp_path / "example_out/bag/drive") as bag:
        assert set(bag.topics) == {"/camera/image", "/camera/depth", "/camera/camera_info", "/tf"}


def test_example_imagine_panorama(tmp_path):
    out = run("02_imagine_panorama", tmp_path)
    assert "of the panorama is observed" in out
    panorama = cv2.imread(str(tmp_path / "example_out/panorama/panorama.png"))
    assert panorama.shape == (256, 512, 3)
    assert_image(tmp_path / "example_out/panorama/sheet.png")


def test_example_own_trajectory(tmp_path):
    out = run("03_own_trajectory", tmp_path)
    assert "imagined 8 views" in out
    assert_results(tmp_path / "example_out/trajectory", 8)


def test_example_save_and_load_map(tmp_path):
    out = run("04_save_and_load_map", tmp_path)
    assert "the loaded map gives the same images: True" in out
    folder = tmp_path / "example_out/map"
    archive = load_archive(folder / "room.wsmap")
    assert len(archive.bank) == 8
    assert len(read_point_cloud(folder / "room.ply")[0]) == len(archive.cloud)
    assert_image(folder / "overview.png")


def test_example_provenance_and_confidence(tmp_path):
    out = run("05_provenance_and_confidence", tmp_path)
    errors = [
        (float(observed), float(imagined))
        for observed, imagined in re.findall(r"error ([\d.]+) where observed, ([\d.]+) where imagined", out)
    ]
    assert len(errors) == 5
    assert all(observed < imagined for observed, imagined in errors)
    assert_image(tmp_path / "example_out/provenance/provenance.png")


@pytest.mark.ros
@pytest.mark.skipif(importlib.util.find_spec("rclpy") is None, reason="rclpy is not installed")
def test_example_ros_client(tmp_path):
    from helpers.node_harness import environment_of, next_domain

    out = run("06_ros_client", tmp_path, **environment_of(next_domain()))
    assert "imagined 6 views" in out
    assert "error code 0" in out
    assert load_archive(tmp_path / "example_out/ros/room.wsmap").metadata["pipeline"] == "small"
    assert_image(tmp_path / "example_out/ros/views.png")


def test_example_checkpoint(tmp_path):
    out = run("07_checkpoint", tmp_path)
    assert re.search(r"parameters +7,276,800", out)
    assert "a clip has up to 12 views" in out
    assert_image(tmp_path / "example_out/checkpoint/views.png")


def test_example_export_onnx(tmp_path):
    pytest.importorskip("onnxruntime")
    onnx = pytest.importorskip("onnx")
    out = run("08_export_onnx", tmp_path)
    assert "onnxruntime agrees with torch" in out
    model = onnx.load(str(tmp_path / "example_out/export/control.onnx"))
    assert [node.name for node in model.graph.input] == ["latent", "volume", "temb"]
