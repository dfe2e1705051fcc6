"""`worldstereo imagine`."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
from helpers.textured_wall import textured_wall_views
from typer.testing import CliRunner

from worldstereo_ros.cli.main import app
from worldstereo_ros.geometry.provenance import Provenance
from worldstereo_ros.io.datasets import open_sequence
from worldstereo_ros.io.images import write_image
from worldstereo_ros.io.point_clouds import read_point_cloud
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


def test_imagine_says_that_the_distances_of_a_photo_are_estimated(tmp_path):
    write_image(tmp_path / "photo.png", textured_wall_views()[0].image)
    out = tmp_path / "out"
    arguments = ["imagine", str(tmp_path / "photo.png"), "--path", "right", "--views", "3", "--out", str(out)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    text = " ".join(result.output.split())
    assert "all distances are estimated, and no point counts as observed" in text
    assert re.search(r"within 25 % of the true distance for \d+% of the pixels", text)
    assert re.search(r"photo.png: 1 observed view, 0 observed, [\d,]{3,} estimated, 0 imagined points", text)
    assert re.search(
        r"Imagined 3 views along the preset right: 0% observed, \d+% estimated, \d+% imagined pixels", text
    )
    cloud = read_point_cloud(out / "cloud.ply")
    assert Provenance.OBSERVED not in cloud.provenance
    assert (cloud.provenance == Provenance.ESTIMATED).sum() > 500
    assert load_archive(out / "world.wsmap").cloud.observed_count == 0
    results = json.loads((out / "results.json").read_text())
    assert (results["metric"], results["scale_from"]) == (False, "a guess of the depth model")
    (photo,) = open_sequence(out / "observed")
    assert photo.is_observation
    assert photo.estimated_mask.any()
    assert not (photo.observed_mask & (photo.depth > 0)).any()
    for view in open_sequence(out / "imagined"):
        assert not view.observed_mask.any()
    # The results are a recording again, and still no measurement.
    arguments = ["imagine", str(out / "observed"), "--views", "2", "--out", str(tmp_path / "again")]
    again = CliRunner().invoke(app, arguments)
    assert again.exit_code == 0, again.output
    assert load_archive(tmp_path / "again" / "world.wsmap").cloud.observed_count == 0
    assert json.loads((tmp_path / "again" / "results.json").read_text())["metric"] is False


def test_imagine_says_which_views_have_no_measured_depth(tmp_path):
    views = textured_wall_views()
    write_sequence(tmp_path / "in", [*views[:2], replace(views[3], depth=None)])
    arguments = ["imagine", str(tmp_path / "in"), "--observations", "3", "--views", "2", "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    text = " ".join(result.output.split())
    assert "1 of 3 views have no measured depth: their distances are estimated." in text
    first, _, last = open_sequence(tmp_path / "out" / "observed")
    assert first.observed_mask.all()
    assert last.estimated_mask.any()
    assert np.ptp(first.depth) == 0  # measured depth is unchanged


def test_imagine_rejects_imagined_views_as_a_source(sequence, tmp_path):
    out = tmp_path / "out"
    result = CliRunner().invoke(app, ["imagine", str(sequence), "--views", "2", "--out", str(out)])
    assert result.exit_code == 0, result.output
    result = CliRunner().invoke(app, ["imagine", str(out / "imagined"), "--out", str(tmp_path / "again")])
    assert result.exit_code != 0
    assert "holds imagined views" in result.output + result.stderr


def test_imagine_writes_views_with_a_border_as_they_came(tmp_path):
    views = textured_wall_views()
    bordered = views[1].image.copy()
    bordered[:3] = bordered[-3:] = 255
    bordered[:, :3] = bordered[:, -3:] = 255
    write_sequence(tmp_path / "in", [views[0], replace(views[1], image=bordered)])
    arguments = ["imagine", str(tmp_path / "in"), "--observations", "2", "--views", "2", "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    np.testing.assert_array_equal(open_sequence(tmp_path / "out" / "observed")[1].image, bordered)
