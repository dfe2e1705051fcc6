"""`worldstereo imagine` segment by segment: captures of a map, poses of the views by what they show."""

import json

import numpy as np
import pytest
from helpers.textured_wall import textured_wall_views
from typer.testing import CliRunner

from worldstereo_ros.cli.main import app
from worldstereo_ros.geometry.views import ImaginedView
from worldstereo_ros.io.posed_sequences import write_sequence
from worldstereo_ros.memory.archive import load_archive
from worldstereo_ros.reconstruction.relocalisation import PoseCheck, Relocaliser


def run(*arguments) -> str:
    result = CliRunner().invoke(app, ["imagine", "--model", "geometric", *map(str, arguments)])
    assert result.exit_code == 0, result.output
    return " ".join(result.output.split())


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a map of four observed views."""
    folder = tmp_path_factory.mktemp("place")
    write_sequence(folder / "in", textured_wall_views())
    run(folder / "in", "--observations", 4, "--views", 1, "--out", folder / "place")
    return folder / "place"


def test_a_map_of_several_views_is_continued_by_the_loop(place, tmp_path):
    text = run("--map", place, "--path", "between", "--views", 4, "--out", tmp_path / "out")
    assert "From view 0 on: observed view" in text
    content = json.loads((tmp_path / "out" / "results.json").read_text())
    views = content["loop"]["views"]
    assert len(views) == 4
    for number, one in enumerate(views):
        assert f"view {number}: " in text
        assert set(one["captures"]) <= set(range(4))
        assert one["in_geometry"] == (not one["check"]["drifted"])
    assert any(one["check"]["located"] for one in views)
    assert any(name in text for name in ("could be located", "show too little"))
    before, after = (load_archive(folder / "world.wsmap").cloud for folder in (place, tmp_path / "out"))
    assert after.observed_count == before.observed_count


def test_without_update_the_map_stays_as_it_was(place, tmp_path):
    run("--map", place, "--path", "orbit", "--views", 3, "--no-update", "--out", tmp_path / "out")
    before, after = (load_archive(folder / "world.wsmap") for folder in (place, tmp_path / "out"))
    np.testing.assert_array_equal(after.cloud.points, before.cloud.points)
    assert len(after.bank) == len(before.bank)


def test_drifted_views_are_named_and_stay_out(place, tmp_path, monkeypatch):
    def drift(_: Relocaliser, view: ImaginedView) -> PoseCheck:
        return PoseCheck(200, 50, 40, pixels=30.0, drifted=view.index == 1)

    monkeypatch.setattr(Relocaliser, "check", drift)
    text = run("--map", place, "--path", "right", "--views", 3, "--out", tmp_path / "out")
    assert "view 1: off by 30.0 px (40 of 50 features agree): drifted" in text
    assert "They stay out of the geometry" in text
    content = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [one["in_geometry"] for one in content["loop"]["views"]] == [True, False, True]


def test_a_source_is_imagined_by_the_loop_where_it_is_asked_for(place, tmp_path):
    source = place.parent / "in"
    text = run(source, "--observations", 3, "--loop", "--segment", 2, "--views", 2, "--out", tmp_path / "loop")
    assert "view 1: " in text
    text = run("--map", place, "--no-loop", "--views", 2, "--out", tmp_path / "bare")
    assert "view 1: " not in text
    assert "loop" not in json.loads((tmp_path / "bare" / "results.json").read_text())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--segment", "3"], "--segment need the loop; add --loop"),
        (["--no-update", "--captures", "published"], "--captures and --no-update need the loop"),
        (["--loop", "--captures", "nearest"], "--captures is 'nearest'; visible or published was expected"),
    ],
)
def test_options_without_effect_are_refused(place, tmp_path, options, message):
    arguments = ["imagine", str(place.parent / "in"), "--model", "geometric", *options]
    result = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "out")])
    assert result.exit_code != 0
    assert message in " ".join((result.output + str(result.exception)).split())
    assert not (tmp_path / "out").exists()
