import json
import re
from dataclasses import replace

import numpy as np
import pytest
from helpers.floor_plans import around, boxes, drive
from typer.testing import CliRunner

from worldstereo_ros.cli.main import app
from worldstereo_ros.io.path_files import read_path_files, write_path_file
from worldstereo_ros.memory.cloud import CloudMemory
from worldstereo_ros.pipelines.auto import load_pipeline
from worldstereo_ros.world import WorldModel

SCENE = boxes(((1.5, 0.0, 0.5), (0.4, 1.0, 1.0)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A map of a room with a box, and two paths."""
    path = tmp_path_factory.mktemp("score")
    world = WorldModel(load_pipeline("geometric"), CloudMemory(voxel_size=0.02, max_points=200_000))
    for view in around(SCENE, -0.5, 0, 6):
        world.observe(view)
    world.save(path / "room.wsmap")
    (path / "paths").mkdir()
    write_path_file(path / "paths/into.txt", drive((0.3, 0), (1.5, 0)))
    write_path_file(path / "paths/beside.txt", drive((0.3, 0), (0.9, 0.9)))
    return path


def run(*arguments):
    result = CliRunner().invoke(app, ["score", *map(str, arguments)])
    return result.exit_code, re.sub(r"\s+", " ", result.output)


def test_the_scores_are_printed_and_written(folder):
    file = folder / "out.json"
    status, text = run(folder / "room.wsmap", "--paths", folder / "paths", "--hypotheses", 0, "--json", file)
    assert status == 0, text
    assert "'beside' before 'into'" in text
    content = json.loads(file.read_text())
    assert content["winner"] == "beside"
    assert [path["name"] for path in content["paths"]] == ["beside", "into"]
    beside, into = content["paths"]
    assert into["collision_probability"] > beside["collision_probability"]
    assert len(into["pose_collision"]) == len(drive((0.3, 0), (1.5, 0)))
    assert content["scale_is_given"] is True
    assert "guess" not in text
    assert content["seconds_imagining"] < content["seconds"]


def test_imagined_views_are_used(folder):
    write_path_file(folder / "back.txt", drive((0, 0.2), (0.4, 0.2)))
    file = folder / "imagined.json"
    status, text = run(
        folder / "room.wsmap", "--paths", folder / "back.txt", "--views", 2, "--hypotheses", 1, "--json", file
    )
    assert status == 0, text
    assert "of imagining 1 x 1 paths" in text
    assert json.loads(file.read_text())["hypotheses"] == 1


def test_bad_input_is_refused_with_a_sentence(folder):
    map_file, paths = folder / "room.wsmap", folder / "paths"
    (folder / "none").mkdir(exist_ok=True)
    far = drive((0.3, 0), (1.5, 0))
    far[:, 0, 3] += 40
    write_path_file(folder / "unit.txt", far, metric=False)
    for arguments, sentence in (
        ((folder / "missing.wsmap", "--paths", paths), "missing.wsmap"),
        ((map_file, "--paths", folder / "none"), "no path files"),
        ((map_file, "--paths", folder / "missing.txt"), "missing.txt"),
        ((map_file, "--paths", paths, "--paths", paths), "Two paths are named"),
        ((map_file, "--paths", folder / "unit.txt"), "the two are not mixed"),
        ((map_file, "--paths", paths, "--hypotheses", 0, "--floor", 99), "outside the map"),
        ((map_file, "--paths", paths, "--hypotheses", 0, "--radius", -1), "radius"),
        ((map_file, "--paths", paths, "--hypotheses", 0, "--resolution", 0.001), "resolution"),
    ):
        status, text = run(*arguments)
        assert status == 1, text
        assert sentence in text


def test_a_posed_sequence_is_a_path_in_the_unit_of_its_intrinsics(folder, tmp_path):
    """The poses of a sequence of an arbitrary unit were taken for metres, as their file alone does not say it."""
    poses = drive((0.3, 0), (0.9, 0.9))
    write_path_file(tmp_path / "poses.txt", poses)
    said = (tmp_path / "poses.txt").read_text()
    (tmp_path / "poses.txt").write_text("".join(line for line in said.splitlines(True) if "unit" not in line))
    intrinsics = {"width": 64, "height": 48, "fx": 50, "fy": 50, "cx": 31.5, "cy": 23.5}
    for metric in (True, False):
        (tmp_path / "intrinsics.json").write_text(json.dumps({**intrinsics, "metric": metric}))
        for path in (tmp_path, tmp_path / "poses.txt"):
            status, text = run(folder / "room.wsmap", "--paths", path, "--hypotheses", 0)
            assert status == (0 if metric else 1), text
            assert metric or "in an arbitrary unit by intrinsics.json beside it" in text
    assert list(read_path_files(tmp_path)) == [tmp_path.name]


def test_scores_on_a_map_of_guessed_scale_say_so(tmp_path):
    """Lengths, clearances and collisions were printed in metres, although only the depth network gave the scale."""
    world = WorldModel(load_pipeline("geometric"), CloudMemory(voxel_size=0.02, max_points=200_000))
    for view in around(SCENE, -0.5, 0, 6):
        confidence = np.full(view.depth.shape, 0.5, np.float32)
        world.observe(replace(view, estimated=np.ones(view.depth.shape, bool), depth_confidence=confidence))
    world.save(tmp_path / "room.wsmap")
    write_path_file(tmp_path / "path.txt", drive((0.3, 0), (0.9, 0.0)))
    file = tmp_path / "scores.json"
    arguments = ("--paths", tmp_path / "path.txt", "--hypotheses", 0, "--floor", 0, "--json", file)
    status, text = run(tmp_path / "room.wsmap", *arguments)
    assert status == 0, text
    assert "they are a guess of the depth model" in text
    assert json.loads(file.read_text())["scale_is_given"] is False


def test_a_file_that_cannot_be_written_is_refused_before_anything_is_computed(folder):
    status, text = run(folder / "room.wsmap", "--paths", folder / "paths", "--json", folder)
    assert status == 1
    assert "folder" in text
    assert "scored" not in text


def test_two_files_of_one_name_are_refused(tmp_path):
    write_path_file(tmp_path / "a.txt", np.eye(4)[None])
    assert list(read_path_files(tmp_path)) == ["a"]
    assert list(read_path_files(tmp_path / "a.txt")) == ["a"]
    (tmp_path / "a.json").write_text("{}")
    from worldstereo_ros.io.files import DatasetError

    with pytest.raises(DatasetError, match="two files of the path 'a'"):
        read_path_files(tmp_path)
