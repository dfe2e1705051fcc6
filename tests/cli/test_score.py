import json
import re

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


def test_two_files_of_one_name_are_refused(tmp_path):
    write_path_file(tmp_path / "a.txt", np.eye(4)[None])
    assert list(read_path_files(tmp_path)) == ["a"]
    assert list(read_path_files(tmp_path / "a.txt")) == ["a"]
    (tmp_path / "a.json").write_text("{}")
    from worldstereo_ros.io.files import DatasetError

    with pytest.raises(DatasetError, match="two files of the path 'a'"):
        read_path_files(tmp_path)
