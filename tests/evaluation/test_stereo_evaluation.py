"""Evaluation of made eyes on pairs and posed sequences with known truth."""

import json
import shutil
from dataclasses import asdict

import numpy as np
import pytest
from helpers.stereo_scene import CAMERA, pose_at, view_from
from typer.testing import CliRunner

from worldstereo_ros.cli.main import app
from worldstereo_ros.evaluation.stereo import ESTIMATED, SENSOR, TRUTH, evaluate_sequence, means
from worldstereo_ros.evaluation.stereo_data import THERE_AND_BACK, open_stereo_data
from worldstereo_ros.geometry.views import View
from worldstereo_ros.imaging.image_checks import ImageError
from worldstereo_ros.io.files import DatasetError
from worldstereo_ros.io.images import write_image
from worldstereo_ros.io.posed_sequences import write_sequence
from worldstereo_ros.models.checkpoints.saving import save_weights, write_json
from worldstereo_ros.models.stereo_refiner import StereoRefiner
from worldstereo_ros.utils.errors import InputError

BASE, DOFFS = 0.1, 2.0


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A rectified pair whose principal points differ, as in Middlebury's."""
    folder = tmp_path_factory.mktemp("pairs") / "stereo_board"
    left, depth = view_from(0.0)
    right = view_from(BASE)[0]
    shifted = np.roll(right, int(DOFFS), axis=1)
    write_image(folder / "left.png", left)
    write_image(folder / "right.png", shifted)
    disparity = CAMERA.fx * BASE / depth - DOFFS
    write_image(folder / "disparity.png", np.rint(disparity * 256).astype(np.uint16))
    calibration = {"width": CAMERA.width, "height": CAMERA.height, "fx": CAMERA.fx, "fy": CAMERA.fy}
    calibration |= {"cx_left": CAMERA.cx, "cy": CAMERA.cy, "baseline_m": BASE, "doffs": DOFFS}
    (folder / "calib.json").write_text(json.dumps(calibration))
    return folder


def test_pipelines_rank_as_they_must_on_a_pair(pair):
    (sequence,) = open_stereo_data(pair)
    rows = {
        row.pipeline: row
        for row in evaluate_sequence(sequence, ["unchanged", "background", "telea", "geometric"], SENSOR)
    }
    assert TRUTH not in rows
    for name in ("background", "telea", "geometric"):
        assert rows[name].psnr > rows["unchanged"].psnr + 6
        assert rows[name].psnr_seen > 32
    assert rows["background"].sgbm_epe < rows["unchanged"].sgbm_epe
    assert rows["background"].flicker is None


def test_memory_raises_holes_in_a_sequence_there_and_back(tmp_path):
    views = []
    for index in range(4):
        x = 0.08 * index
        image, depth = view_from(x)
        views.append(View(image, CAMERA, pose_at(x), depth))
    write_sequence(tmp_path / "walk", views)
    (sequence,) = open_stereo_data(tmp_path / "walk")
    assert sequence.truth == THERE_AND_BACK
    rows = {r.pipeline: r for r in evaluate_sequence(sequence, ["background", "geometric"], SENSOR)}
    assert rows["geometric"].psnr_holes > rows["background"].psnr_holes
    # Edges are mixed as cameras mix them; those of this scene are hard, and the frame was made of them without mixing.
    assert rows["geometric"].psnr_seen > 42
    assert rows[TRUTH].warp_error > 0
    assert rows[TRUTH].psnr is None


def test_depth_sources_have_rows_of_their_own(pair, tmp_path):
    small = {"width": 16, "heads": 2, "depth": 1, "pixel_width": 4}
    run = tmp_path / "run"
    save_weights(run / "base" / "stereo", "diffusion_pytorch_model", StereoRefiner(**small).state_dict())
    write_json(run / "base" / "stereo" / "config.json", {"_class_name": "StereoRefiner", **small})
    arguments = ["evaluate", "--stereo", "--data", str(pair), "--pipeline", "geometric", "--pipeline", str(run)]
    arguments += ["--no-features", "--device", "cpu", "--json", str(tmp_path / "rows.json")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert [row["depth"] for row in rows] == [SENSOR, SENSOR, ESTIMATED, ESTIMATED]
    assert [row["pipeline"] for row in rows] == ["geometric", str(run)] * 2
    assert rows[0]["psnr"] != rows[2]["psnr"]
    assert rows[0]["psnr"] == pytest.approx(rows[1]["psnr"], abs=0.1)  # untrained, it paints the fill
    assert set(rows[0]) >= {
        "sequence", "pipeline", "depth", "psnr", "psnr_holes", "psnr_seen", "ssim", "st_lpips", "flicker", "warp_error",
        "sgbm_epe", "seconds_per_frame",
    }  # fmt: skip


def test_pair_without_disparity_is_estimated_alone(pair, tmp_path):
    for name in ("left.png", "right.png", "calib.json"):
        (tmp_path / name).write_bytes((pair / name).read_bytes())
    (sequence,) = open_stereo_data(tmp_path)
    assert not sequence.sensor_depth
    assert sequence.load(0).hole is None


def test_means_keep_kinds_apart(pair):
    (sequence,) = open_stereo_data(pair)
    rows = evaluate_sequence(sequence, ["unchanged"], SENSOR)
    assert means(rows) == []
    average = means([*rows, *rows])
    assert len(average) == 1
    assert asdict(average[0])["psnr"] == rows[0].psnr


def test_bad_data_is_refused(pair, tmp_path):
    with pytest.raises(InputError, match="stereo pair"):
        open_stereo_data(tmp_path)
    for name in ("left.png", "right.png"):
        (tmp_path / name).write_bytes((pair / name).read_bytes())
    with pytest.raises(InputError, match="but no calib"):
        open_stereo_data(tmp_path)
    (tmp_path / "calib.json").write_text('{"width": 4}')
    with pytest.raises(DatasetError, match="height"):
        open_stereo_data(tmp_path)
    result = CliRunner().invoke(app, ["evaluate", "--stereo", "--data", str(pair), "--pipeline", "magic"])
    assert result.exit_code == 1
    assert "magic" in result.output


def test_damaged_frames_and_pairs_are_left_out_and_said(pair, tmp_path):
    notes = []
    views = [
        View(view_from(0.08 * index)[0], CAMERA, pose_at(0.08 * index), view_from(0.08 * index)[1])
        for index in (0, 1, 2)
    ]
    write_sequence(tmp_path / "walks" / "walk", views)
    damage(tmp_path / "walks" / "walk" / "frames" / "000000.png")
    for name in ("a", "b"):
        shutil.copytree(pair, tmp_path / "walks" / name)
    damage(tmp_path / "walks" / "b" / "right.png")
    found = open_stereo_data(tmp_path / "walks", notes.append)
    assert [(one.name, one.frames) for one in found] == [("a", 1), ("walk", 2)]
    np.testing.assert_array_equal(found[1].load(0).truth, views[1].image)
    assert sorted(note.split(" The first: ")[0] for note in notes) == [
        "walk: 1 of 3 frames are damaged and left out.",
        "walks: 1 of 2 pairs are damaged and left out.",
    ]
    result = CliRunner().invoke(
        app, ["evaluate", "--stereo", "--data", str(tmp_path / "walks"), "--pipeline", "unchanged",
              "--depth-model", "none", "--no-features"],
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "1 of 2 pairs are damaged" in result.output
    assert "1 of 3 frames are damaged" in result.output
    damage(tmp_path / "walks" / "a" / "left.png")
    with pytest.raises(DatasetError, match="None of the 2 pairs"):
        open_stereo_data(tmp_path / "walks")
    (named,) = open_stereo_data(tmp_path / "walks" / "a")
    with pytest.raises(ImageError, match=r"left\.png is damaged"):
        named.load(0)


def damage(file):
    file.write_bytes(file.read_bytes()[:80])
