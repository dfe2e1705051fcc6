"""The protocols interpolation and extrapolation at toy size."""

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from helpers.photo_scene import CAMERA, arc, write_posed

from worldstereo_ros.evaluation import evaluate, write_json
from worldstereo_ros.evaluation.given_photographs import reconstruct_given
from worldstereo_ros.evaluation.loop_options import LoopOptions, split_loop_options
from worldstereo_ros.evaluation.reconstruction_protocols import PhotoEvaluation, PhotoSettings, given_indices
from worldstereo_ros.evaluation.report import means
from worldstereo_ros.evaluation.world_sequences import open_data, world_sequence
from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.io.posed_sequences import open_posed, write_sequence
from worldstereo_ros.reconstruction.features import RegistrationError
from worldstereo_ros.utils.errors import InputError

NEW = ("ate_percent", "rotation_degrees", "st_lpips", "psnr_covered")
OLD = (
    "sequence", "protocol", "pipeline", "frames", "psnr", "ssim", "psnr_seen", "psnr_unseen", "coverage",
    "observed_precision", "observed_recall", "abs_rel", "delta_1_25", "seconds_per_view",
)  # fmt: skip
SMALL = Camera.from_fov(96, 72, 1.3)


@pytest.fixture(scope="module")
def walk(tmp_path_factory) -> Path:
    """Seven photographs of a wall and a box, with poses in an arbitrary unit and without depth."""
    folder = tmp_path_factory.mktemp("data") / "walk"
    folder.mkdir()
    write_posed(folder, arc(7, 5.0), metric=False)
    return folder


@pytest.fixture(scope="module")
def rows(walk) -> list:
    pytest.importorskip("pycolmap")
    return evaluate([walk], "interpolation", ["geometric"], every=2, depth_model="none", with_features=False)


def test_positions_are_those_of_the_paper():
    assert given_indices(40, "interpolation") == [0, 20, 39]
    assert given_indices(40, "extrapolation") == [0, 10, 20, 30]
    assert given_indices(11, "every-fifth") == [1, 2, 3, 4, 6, 7, 8, 9]
    with pytest.raises(InputError, match="needs more"):
        given_indices(3, "interpolation")
    with pytest.raises(InputError, match="at least 3"):
        given_indices(2, "every-fifth")


def test_rows_have_all_names(rows, tmp_path):
    assert [(row.pipeline, row.poses) for row in rows] == [
        (name, poses)
        for name in ("open3d+telea", "splats", "constant", "geometric")
        for poses in ("given", "estimated")
    ]
    write_json(rows, tmp_path / "rows.json")
    for row in json.loads((tmp_path / "rows.json").read_text())["rows"]:
        assert {*OLD, *NEW} <= set(row)
        assert row["protocol"] == "interpolation"


def test_baselines_and_pipelines_are_scored_from_the_same_geometry(rows):
    score = {(row.pipeline, row.poses): row for row in rows}
    for poses in ("given", "estimated"):
        assert score["geometric", poses].psnr > score["constant", poses].psnr + 5
        assert score["geometric", poses].psnr >= score["open3d+telea", poses].psnr - 0.5
        assert score["splats", poses].psnr > score["constant", poses].psnr + 3
        assert score["geometric", poses].psnr_covered > score["geometric", poses].psnr
        assert score["geometric", poses].drift_pixels < 1
        assert score["geometric", poses].drifted == 0
        assert score["geometric", poses].abs_rel is None  # there is no true depth
    for row in rows:
        if row.poses == "given":
            assert row.ate_percent is None
            assert row.rotation_degrees is None
        else:
            assert 0 <= row.ate_percent < 1
            assert 0 < row.rotation_degrees < 1


def test_means_keep_given_and_estimated_poses_apart(rows):
    two = [*rows, *(replace(row, sequence="other") for row in rows)]
    assert {(row.pipeline, row.poses) for row in means(two)} == {(row.pipeline, row.poses) for row in rows}


def test_the_order_of_photographs_changes_nothing(walk):
    pytest.importorskip("pycolmap")
    settings = PhotoSettings(poses=("given",), every=3, with_features=False)
    names = ["geometric", "geometric?shuffle=true", "geometric?update=false&cache=false"]
    found = evaluate(
        [walk], "interpolation", names, every=3, poses=settings.poses, depth_model="none", with_features=False
    )
    first, shuffled, bare = (asdict(row) for row in found[-3:])
    for name in (*OLD, *NEW, "drift_pixels", "drifted"):
        if name not in ("pipeline", "seconds_per_view"):
            assert first[name] == shuffled[name], name
    assert bare["psnr"] < first["psnr"] + 0.5  # one capture instead of three
    assert bare["psnr"] != first["psnr"]


def test_photographs_are_reconstructed_the_same_in_any_order(walk, tmp_path):
    pytest.importorskip("pycolmap")
    views = [open_posed(walk)[index] for index in (0, 3, 6)]
    results = []
    for number, order in enumerate(((0, 1, 2), (2, 0, 1))):
        folder = tmp_path / str(number)
        folder.mkdir()
        results.append(reconstruct_given([views[i] for i in order], folder, max_pixels=CAMERA.width * CAMERA.height))
    one, other = results
    for a, b in zip(one.views, other.views, strict=True):
        np.testing.assert_array_equal(a.image, b.image)
        np.testing.assert_array_equal(a.depth, b.depth)
        assert not a.metric
    assert min((view.depth > 0).mean() for view in one.views) > 0.2


def test_failed_registration_leaves_rows_without_figures(walk, monkeypatch):
    def refuse(*_):
        raise RegistrationError("The photographs cannot be registered to each other.")

    monkeypatch.setattr("worldstereo_ros.evaluation.given_photographs.register", refuse)
    notes = []
    found = evaluate(
        [walk], "interpolation", ["geometric"], poses=["estimated"], depth_model="none", on_note=notes.append
    )
    assert {row.frames for row in found} == {0}
    assert all(getattr(row, name) is None for row in found for name in ("psnr", *NEW))
    assert len(notes) == 1
    assert "cannot be registered" in notes[0]


def test_worlds_take_the_depth_of_the_sensor_where_it_is_asked_for():
    pytest.importorskip("pycolmap")
    sequence = world_sequence("test", 0, views=5, camera=SMALL)
    found = evaluate(
        [sequence], "interpolation", ["geometric?revisit=true"], poses=["given"], depth_source="sensor",
        depth_model="none", with_features=False,
    )  # fmt: skip
    row = found[-1]
    assert row.abs_rel < 0.1
    assert row.psnr_seen > 15
    assert row.observed_precision > 0.8
    assert row.psnr_revisited_imagined is None or row.psnr_revisited_imagined > 20


def test_options_of_the_loop_are_split_off():
    name, options = split_loop_options("small?steps=4&update=false&captures=published&segment=7")
    assert name == "small?steps=4"
    assert options == LoopOptions(update=False, captures="published", segment=7)
    assert split_loop_options("geometric") == ("geometric", LoopOptions())
    for wrong in ("a?update=no", "a?captures=nearest", "a?segment=0", "a?cache=true&cache=false"):
        with pytest.raises(InputError):
            split_loop_options(wrong)


def test_data_without_depth_is_opened_for_these_protocols_alone(walk, tmp_path):
    assert [one.path for one in open_data(walk.parent, needs_depth=False)] == [walk]
    with pytest.raises(InputError, match="contains none"):
        open_data(walk.parent)
    photo = tmp_path / "one"
    write_sequence(photo, [open_posed(walk)[0]])
    with pytest.raises(InputError, match="needs more"):
        evaluate([photo], "interpolation", ["geometric"], depth_model="none")
    with pytest.raises(InputError, match="no depth"):
        PhotoEvaluation(open_posed(walk), "interpolation", PhotoSettings(depth_source="sensor"), None)


def test_damaged_photographs_are_neither_given_nor_evaluated(walk, tmp_path):
    pytest.importorskip("pycolmap")
    folder, notes = shutil.copytree(walk, tmp_path / "walk"), []
    file = sorted((folder / "frames").iterdir())[3]
    file.write_bytes(file.read_bytes()[:200])
    found = evaluate(
        [folder], "interpolation", ["constant"], poses=["given"], depth_model="none", with_features=False,
        on_note=notes.append,
    )  # fmt: skip
    assert {row.frames for row in found} == {3}  # of the six that are left three are given
    assert notes[0].startswith("walk: 1 of 7 frames are damaged and left out. The first: ")
    assert file.name in notes[0]
