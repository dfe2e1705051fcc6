"""Every example runs as it stands, prints its result and writes readable files."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import cv2
import pytest
from helpers.paths import REPOSITORY

from worldstereo_ros.geometry.provenance import Provenance
from worldstereo_ros.io.bags.files import Bag
from worldstereo_ros.io.point_clouds import read_point_cloud
from worldstereo_ros.io.posed_sequences import open_posed
from worldstereo_ros.io.video import video_size
from worldstereo_ros.memory.archive import load_archive

EXAMPLES = sorted((REPOSITORY / "examples").glob("*.py"))
MAX_LINES = 60
HAS_ROS = importlib.util.find_spec("rclpy") is not None
TIMEOUT_S = 240  # a hang; the examples say less than a minute on two idle cores


@dataclass(frozen=True)
class Finished:
    """What an example printed, and the folder it ran in."""

    stdout: str
    folder: Path


def run(script: Path, folder: Path, environment: dict[str, str]) -> Finished:
    """Run an example without arguments in `folder`."""
    # `python script` puts the script's folder on the path, not the repository; an installed package needs neither.
    path = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH", "")]))
    result = subprocess.run(
        [sys.executable, str(script)],
        cwd=folder,
        env={"OMP_NUM_THREADS": "1", **os.environ, "PYTHONPATH": path, **environment},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    assert result.returncode == 0, f"{result.stdout}\n{result.stderr}"
    for written in re.findall(r"example_out/[\w./]+", result.stdout):
        assert (folder / written).exists(), f"{written} was not written"
    return Finished(result.stdout, folder)


@pytest.fixture(scope="module")
def finished(request, tmp_path_factory) -> Iterator[Callable[[str], Finished]]:
    """Results of the examples by name. Two run at a time: most of their time is spent on imports by one thread."""
    selected = {item.originalname for item in request.session.items if item.path == Path(__file__)}
    runs: dict[str, Future[Finished]] = {}
    with ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(max_workers=2))
        for script in EXAMPLES:
            name, environment = script.stem[3:], {}
            if f"test_example_{name}" not in selected or (name == "ros_client" and not HAS_ROS):
                continue
            if name == "ros_client":
                from helpers.node_harness import environment_of, reserved_domain

                environment = environment_of(stack.enter_context(reserved_domain()))
            runs[name] = pool.submit(run, script, tmp_path_factory.mktemp(name), environment)
        yield lambda name: runs[name].result()


def assert_image(path: Path, min_size: int = 100) -> None:
    """The file is an image with some content."""
    image = cv2.imread(str(path))
    assert image is not None, f"{path} is no image"
    assert min(image.shape[:2]) >= min_size
    assert image.std() > 10


def assert_results(folder: Path, views: int, best: Provenance = Provenance.OBSERVED) -> None:
    """The files of `write_results` open and agree on the number of views; the best known points are of class `best`."""
    assert_image(folder / "contact_sheet.png")
    assert video_size(folder / "imagined.mp4")[2] == views
    assert len(open_posed(folder / "imagined")) == views
    cloud = read_point_cloud(folder / "cloud.ply")
    assert len(cloud.points) > 10_000
    assert cloud.provenance is not None
    assert (cloud.provenance == best).any()
    assert cloud.provenance.max() == best


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_has_fewer_lines_than_the_limit_and_a_docstring(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) < MAX_LINES
    assert f"python examples/{path.name}" in text.split('"""')[1]


def test_every_example_has_a_test():
    tested = {name.removeprefix("test_example_") for name in globals() if name.startswith("test_example_")}
    assert {path.stem[3:] for path in EXAMPLES} <= tested


def test_example_imagine_from_photo(finished):
    example = finished("imagine_from_photo")
    assert "view 8/8" in example.stdout
    assert_image(example.folder / "example_out/photo/photo.png")
    assert re.search(r"remembered photo.png: \d+ estimated points, 0 observed", example.stdout)
    assert_results(example.folder / "example_out/photo", 8, best=Provenance.ESTIMATED)


def test_example_imagine_from_bag(finished):
    example = finished("imagine_from_bag")
    assert "observed 8 views" in example.stdout
    assert_results(example.folder / "example_out/bag", 8)
    with Bag(example.folder / "example_out/bag/drive") as bag:
        assert set(bag.topics) == {"/camera/image", "/camera/depth", "/camera/camera_info", "/tf"}


def test_example_imagine_panorama(finished):
    example = finished("imagine_panorama")
    assert "of the panorama is observed" in example.stdout
    panorama = cv2.imread(str(example.folder / "example_out/panorama/panorama.png"))
    assert panorama.shape == (256, 512, 3)
    assert_image(example.folder / "example_out/panorama/sheet.png")


def test_example_own_trajectory(finished):
    example = finished("own_trajectory")
    assert "imagined 8 views" in example.stdout
    assert_results(example.folder / "example_out/trajectory", 8)


def test_example_save_and_load_map(finished):
    example = finished("save_and_load_map")
    assert "the loaded map gives the same images: True" in example.stdout
    folder = example.folder / "example_out/map"
    archive = load_archive(folder / "room.wsmap")
    assert len(archive.bank) == 8
    assert len(read_point_cloud(folder / "room.ply").points) == len(archive.cloud)
    assert_image(folder / "overview.png")


def test_example_provenance_and_confidence(finished):
    example = finished("provenance_and_confidence")
    errors = re.findall(r"error ([\d.]+) where observed, ([\d.]+|-) where imagined", example.stdout)
    assert len(errors) == 5
    assert errors[0] == ("0.000", "-")  # at the pose of the observation
    assert all(float(observed) < float(imagined) for observed, imagined in errors[1:])
    assert_image(example.folder / "example_out/provenance/provenance.png")


@pytest.mark.ros
@pytest.mark.skipif(not HAS_ROS, reason="rclpy is not installed")
def test_example_ros_client(finished):
    example = finished("ros_client")
    assert "imagined 6 views" in example.stdout
    assert "error code 0" in example.stdout
    assert load_archive(example.folder / "example_out/ros/room.wsmap").metadata["pipeline"] == "small"
    assert_image(example.folder / "example_out/ros/views.png")


def test_example_checkpoint(finished):
    example = finished("checkpoint")
    assert re.search(r"parameters +7,276,800", example.stdout)
    assert "a clip has up to 12 views" in example.stdout
    assert_image(example.folder / "example_out/checkpoint/views.png")


def test_example_export_onnx(finished):
    pytest.importorskip("onnxruntime")
    onnx = pytest.importorskip("onnx")
    example = finished("export_onnx")
    assert "onnxruntime agrees with torch" in example.stdout
    model = onnx.load(str(example.folder / "example_out/export/control.onnx"))
    assert [node.name for node in model.graph.input] == ["latent", "volume", "temb"]


def test_example_reconstruct(finished):
    pytest.importorskip("pycolmap")
    example = finished("reconstruct")
    assert "10 of 10 photographs are registered" in example.stdout
    assert "metric: False" in example.stdout
    folder = example.folder / "example_out/place"
    figures = json.loads((folder / "figures.json").read_text(encoding="utf-8"))
    assert figures["observed_points"] > 5000
    assert figures["mesh_triangles"] > 1000
    assert len(read_point_cloud(folder / "cloud.ply").points) == figures["points"]
    assert len(open_posed(folder / "observed")) == 10
    assert_image(folder / "overview.png")
