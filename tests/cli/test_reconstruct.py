import json

import numpy as np
import pytest
from helpers.photo_scene import arc, render, write_photos, write_posed
from typer.testing import CliRunner

from worldstereo_ros.cli.main import app
from worldstereo_ros.geometry.similarity import pose_errors
from worldstereo_ros.io.colmap_models import read_colmap_model
from worldstereo_ros.io.datasets import open_sequence
from worldstereo_ros.io.posed_sequences import write_sequence
from worldstereo_ros.memory.archive import load_archive
from worldstereo_ros.reconstruction import dense, place
from worldstereo_ros.visualization.viewer.loading import load_viewable

pytest.importorskip("pycolmap")
POSES = arc(5)
QUICK = ("--splat-seconds", "0", "--size", "120x90", "--depth-model", "none")


def _run(*arguments, expect: int = 0):
    result = CliRunner().invoke(app, ["reconstruct", *map(str, arguments)])
    assert result.exit_code == expect, result.output
    return " ".join(result.output.split())


@pytest.fixture(scope="module")
def posed(tmp_path_factory):
    """A posed sequence in metres, reconstructed."""
    folder = tmp_path_factory.mktemp("posed")
    views = write_posed(folder / "in", POSES)
    output = _run(folder / "in", "--out", folder / "place", "--splat-seconds", "0", "--size", "120x90")
    return folder / "place", views, output


def test_figures_say_what_was_made(posed):
    folder, _, output = posed
    figures = json.loads((folder / "figures.json").read_text())
    assert figures["images"] == figures["registered"] == 5
    assert figures["left_out"] == {}
    assert figures["metric"] is True
    assert {"photographs", "registration", "depth", "holes", "fusion", "mesh", "splats"} <= figures["seconds"].keys()
    assert figures["points"] == figures["observed_points"] + figures["estimated_points"] > 3000
    assert figures["mesh_triangles"] > 1000
    assert figures["splats"] > 1000
    assert figures["poses_from"] == "source"
    assert "5 of 5 photographs are registered" in output
    assert "arbitrary" not in output


def test_the_map_holds_true_distances_marked_as_observed(posed):
    folder, _, _ = posed
    archive = load_archive(folder / "world.wsmap")
    assert archive.bank.metric is True
    assert len(archive.bank) == 5
    for view, pose in zip(archive.bank.views, POSES, strict=True):
        np.testing.assert_allclose(view.world_from_camera, pose, atol=1e-6)
        truth = render(pose, view.camera).depth
        observed = (view.depth > 0) & ~view.estimated_mask
        assert observed.mean() > 0.5
        errors = np.abs(view.depth[observed] / truth[observed] - 1)
        assert (errors < 0.05).mean() > 0.95
        assert np.median(errors) < 0.01


def test_the_place_is_shown_and_its_files_are_read(posed):
    folder, _, _ = posed
    shown = load_viewable(folder)
    assert len(shown.points) > 3000
    model = read_colmap_model(folder / "colmap")
    assert [image.name for image in model] == [f"{i:06d}.png" for i in range(5)]
    assert (model[0].calibration.camera.width, model[0].calibration.camera.height) == (240, 180)  # the original size
    assert model[0].calibration.camera.cx == pytest.approx(119.5)
    np.testing.assert_allclose(model[2].world_from_camera, POSES[2], atol=1e-6)
    sequence = open_sequence(folder / "observed")
    assert sequence.metric
    assert len(sequence) == 5


def test_views_are_imagined_from_the_place(posed, tmp_path):
    folder, _, _ = posed
    options = ["--map", str(folder), "--path", "left", "--distance", "0.2", "--views", "2", "--model", "geometric"]
    result = CliRunner().invoke(app, ["imagine", *options, "--out", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    assert "imagined points" in " ".join(result.output.split())
    result = CliRunner().invoke(app, ["imagine", *options, "--fov", "60", "--out", str(tmp_path / "out")])
    assert result.exit_code == 1
    assert "--fov" in result.output


def test_a_second_run_uses_what_the_first_one_computed(posed, monkeypatch):
    folder, _, _ = posed
    before = json.loads((folder / "figures.json").read_text())
    for name in ("register", "import_photographs", "estimate_depths", "fill_holes"):
        monkeypatch.setattr(place, name, None)
    output = _run(folder.parent / "in", "--out", folder, "--splat-seconds", "0", "--size", "120x90", "--no-mesh")
    figures = json.loads((folder / "figures.json").read_text())
    assert figures["resumed"] == ["photographs", "registration", "depth", "holes"]
    assert figures["points"] == before["points"]
    assert figures["mesh_triangles"] is None
    assert not (folder / "mesh.glb").exists()
    assert "Of an earlier run" in output


def test_depth_unit_of_a_sequence(tmp_path):
    write_sequence(tmp_path / "in", [render(pose) for pose in POSES[:3]])
    arguments = (tmp_path / "in", "--out", tmp_path / "place", *QUICK, "--no-mesh", "--no-splats")
    found = []
    for unit in ("auto", "0.01", "mm"):  # into one folder: what an earlier run found in another unit is not used
        _run(*arguments, "--depth-unit", unit)
        depth = open_sequence(tmp_path / "place" / "observed")[0].depth
        found.append(float(np.median(depth[depth > 0])))
    assert found[1] == pytest.approx(10 * found[0], rel=0.05)
    assert found[2] == pytest.approx(found[0], rel=0.01)


def test_photographs_alone_give_a_place_in_an_arbitrary_unit(tmp_path):
    write_photos(tmp_path / "in", POSES)
    (tmp_path / "in" / "zcopy.png").write_bytes((tmp_path / "in" / "000001.png").read_bytes())
    output = _run(
        tmp_path / "in", "--out", tmp_path / "place", "--no-mesh", "--no-splats", "--geometry", "fast", *QUICK
    )
    figures = json.loads((tmp_path / "place" / "figures.json").read_text())
    assert (figures["images"], figures["registered"], figures["metric"]) == (6, 5, False)
    assert "same picture" in figures["left_out"]["zcopy.png"]
    assert figures["estimated_points"] == 0
    assert "metric: false" in output
    archive = load_archive(tmp_path / "place" / "world.wsmap")
    assert archive.bank.metric is False
    poses = np.stack([view.world_from_camera for view in archive.bank.views])
    assert pose_errors(poses, POSES).ate_percent < 0.5


def test_an_interrupted_run_goes_on_with_the_photograph_it_was_at(tmp_path, monkeypatch):
    write_posed(tmp_path / "in", POSES)
    arguments = (tmp_path / "in", "--out", tmp_path / "place", "--no-mesh", "--no-splats", *QUICK)
    sweep, swept = dense.sweep, []

    def interrupted(*values, **options):
        if len(swept) == 3:
            raise KeyboardInterrupt
        swept.append(None)
        return sweep(*values, **options)

    monkeypatch.setattr(dense, "sweep", interrupted)
    assert "Interrupted" in _run(*arguments, expect=130)
    assert not (tmp_path / "place" / "figures.json").exists()
    swept.clear()
    monkeypatch.setattr(dense, "sweep", lambda *values, **options: swept.append(None) or sweep(*values, **options))
    _run(*arguments)
    assert len(swept) == 2
    assert json.loads((tmp_path / "place" / "figures.json").read_text())["registered"] == 5


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--image-topic", "/a"], "option of bags"),
        (["--depth-unit", "yard"], "depth unit is 'yard'"),
        (["--depth-unit", "mm"], "this source (photographs) has none. Remove --depth-unit."),
        (["--geometry", "magic"], "sweep, fast, pi3:PATH or vggt:PATH"),
        (["--geometry", "pi3:/no/such/file"], "do not exist"),
        (["--fov", "3"], "field of view is 3 degrees"),
        (["--size", "big"], "WIDTHxHEIGHT"),
        (["--pose-source", "gps"], "auto, photographs or pointmaps"),
        (["--depth-source", "sonar"], "auto or pointmaps"),
        (["--pose-source", "photographs", "--depth-source", "pointmaps"], "not those of photographs"),
        (["--pose-source", "pointmaps", "--depth-model", "none"], "need a depth model"),
    ],
)
def test_options_that_cannot_be_are_errors_before_anything_is_computed(tmp_path, options, expected):
    write_photos(tmp_path / "in", POSES[:2])
    output = _run(tmp_path / "in", "--out", tmp_path / "place", *options, expect=1)
    assert expected in output
    assert not (tmp_path / "place").exists() or not any((tmp_path / "place").iterdir())


def test_a_folder_of_someone_else_is_not_touched(tmp_path):
    write_photos(tmp_path / "in", POSES[:2])
    (tmp_path / "place" / "stages").mkdir(parents=True)
    (tmp_path / "place" / "stages" / "mine.txt").write_text("keep")
    assert "not made by an earlier run" in _run(tmp_path / "in", "--out", tmp_path / "place", expect=1)
    assert (tmp_path / "place" / "stages" / "mine.txt").read_text() == "keep"
    assert "not mixed" in _run(tmp_path / "in", "--out", tmp_path / "in" / "place", expect=1)
