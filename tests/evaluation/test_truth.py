"""What views say of their pixels, against ground truth: precision, recall and calibration of the three classes."""

import json
from dataclasses import replace

import numpy as np
import pytest
from typer.testing import CliRunner

from worldstereo_ros.cli.main import app
from worldstereo_ros.evaluation import evaluate, world_sequences
from worldstereo_ros.evaluation.protocols import make_scenario, repeated
from worldstereo_ros.evaluation.scoring import EvaluatedView, imagined_views
from worldstereo_ros.evaluation.truth import (
    SeenPixels,
    TruthScorer,
    find_seen,
    read_truth,
    to_dict,
    truth_means,
    truth_table,
    write_truth,
)
from worldstereo_ros.evaluation.truth_runner import evaluate_truth
from worldstereo_ros.evaluation.world_sequences import world_sequence
from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.geometry.provenance import Provenance
from worldstereo_ros.geometry.views import View
from worldstereo_ros.pipelines.geometric.pipeline import GeometricPipeline

KEYS = {
    "sequence", "protocol", "pipeline", "class", "precision", "recall", "ece_colour", "ece_depth", "rank_all",
    "rank_imagined",
}  # fmt: skip
CAMERA = Camera(10, 10, 10.0, 10.0, 4.5, 4.5)
SMALL = Camera.from_fov(64, 48, np.radians(75))
pytestmark = pytest.mark.usefixtures("one_thread")


def wall(depth=2.0, x=0.0):
    """A grey wall at a depth in metres, from a camera shifted by `x` metres to the right."""
    pose = np.eye(4)
    pose[0, 3] = x
    return View(np.full((10, 10, 3), 100, np.uint8), CAMERA, pose, np.full((10, 10), depth, np.float32))


def labelled(provenance, *, image=None, depth=2.0, confidence=None, depth_confidence=None):
    """A view as a pipeline returns it; numbers stand for all pixels."""

    def filled(value):
        return None if value is None else np.broadcast_to(np.float32(value), (10, 10)).copy()

    return EvaluatedView(
        index=0,
        image=wall().image if image is None else image,
        depth=filled(depth),
        coverage=1.0,
        provenance=np.broadcast_to(np.uint8(provenance), (10, 10)).copy(),
        seconds=0.0,
        confidence=filled(confidence),
        depth_confidence=filled(depth_confidence),
    )


def mask(rows, columns=slice(None)):
    out = np.zeros((10, 10), bool)
    out[rows, columns] = True
    return out


NOWHERE = mask(slice(0, 0))


def rows_of(*views, truth=None, seen=None):
    """The rows of views, by class."""
    scorer = TruthScorer("place", "single", "model")
    for view in views:
        scorer.add(view, truth or wall(), seen or SeenPixels(NOWHERE, NOWHERE))
    return {row.label: row for row in scorer.rows()}


# --- precision and recall ---


def test_observed_is_compared_with_what_sensors_measured():
    provenance = np.full((10, 10), Provenance.IMAGINED, np.uint8)
    provenance[:4] = Provenance.OBSERVED  # 40 pixels, 30 of them measured, of 50 that were
    rows = rows_of(labelled(provenance), seen=SeenPixels(mask(slice(1, 6)), NOWHERE))
    assert rows["observed"].precision == pytest.approx(30 / 40)
    assert rows["observed"].recall == pytest.approx(30 / 50)
    assert rows["observed"].share == pytest.approx(0.4)
    # 50 pixels were never seen: ten of them are claimed as observed.
    assert rows["imagined"].recall == pytest.approx(40 / 50)
    assert rows["estimated"].precision is None
    assert rows["estimated"].recall is None


def test_what_a_camera_saw_without_depth_is_no_excuse_for_observed():
    rows = rows_of(labelled(Provenance.OBSERVED), seen=SeenPixels(NOWHERE, mask(slice(None))))
    assert rows["observed"].precision == 0
    assert rows["observed"].recall is None
    assert rows["estimated"].recall == 0


def test_estimated_is_right_within_a_quarter_of_the_true_depth():
    depth = np.full((10, 10), 2.0, np.float32)
    depth[0], depth[1], depth[2] = 2.4, 2.6, 1.5  # wrong by a factor of 1.2, 1.3 and 1.33
    depth[3] = 0  # unknown
    provenance = np.full((10, 10), Provenance.ESTIMATED, np.uint8)
    provenance[9] = Provenance.IMAGINED
    view = labelled(provenance, depth=depth)
    rows = rows_of(view, seen=SeenPixels(NOWHERE, mask(slice(0, 5))))
    assert rows["estimated"].precision == pytest.approx(60 / 90)
    assert rows["estimated"].right_depth == pytest.approx(60 / 90)
    assert rows["estimated"].recall == pytest.approx(20 / 50)
    assert rows["imagined"].right_depth == 1


def test_imagined_is_right_within_a_tenth_of_the_range():
    image = np.full((10, 10, 3), 100, np.uint8)
    image[0] = 125  # off by .098 of the range
    image[1] = 126  # by .102
    image[2, :, 0] = 176  # by .0993 in the mean of the channels
    image[3, :, 0] = 177  # by .1007
    rows = rows_of(labelled(Provenance.IMAGINED, image=image, depth=None))
    assert rows["imagined"].precision == rows["imagined"].right_colour == pytest.approx(80 / 100)
    assert rows["imagined"].right_depth == 0
    assert rows["imagined"].recall == 1


def test_pixels_without_true_depth_do_not_count():
    truth = wall()
    truth.depth[:5] = 0
    provenance = np.full((10, 10), Provenance.OBSERVED, np.uint8)
    provenance[5] = Provenance.IMAGINED
    rows = rows_of(labelled(provenance), truth=truth, seen=SeenPixels(mask(slice(5, 10)), NOWHERE))
    assert (rows["observed"].pixels, rows["imagined"].pixels) == (40, 10)
    assert rows["observed"].precision == 1
    assert rows["observed"].recall == pytest.approx(0.8)


def test_pixels_of_all_views_count_alike():
    seen = SeenPixels(mask(slice(0, 1)), NOWHERE)
    provenance = np.full((10, 10), Provenance.IMAGINED, np.uint8)
    provenance[0] = Provenance.OBSERVED
    rows = rows_of(labelled(provenance), labelled(Provenance.OBSERVED), seen=seen)
    assert rows["observed"].frames == 2
    assert rows["observed"].precision == pytest.approx(20 / 110)  # and not the mean of 1 and .1
    assert rows["observed"].recall == 1


def test_seen_pixels_are_split_by_measured_and_unmeasured_observations():
    # Half a metre to the right, the camera sees columns from 0.5 * 10 / 2 = 2.5 on.
    measured, unmeasured = wall(x=0.5), wall(x=-0.5)
    seen = find_seen(wall(), [measured, replace(unmeasured, depth=None)], [measured, unmeasured])
    np.testing.assert_array_equal(seen.measured[5], np.arange(10) >= 2)
    np.testing.assert_array_equal(seen.unmeasured[5], np.arange(10) < 2)
    assert not find_seen(wall(), [], []).measured.any()


# --- calibration ---


def test_calibration_error_is_that_of_the_pixels_of_the_class():
    image, depth = np.full((10, 10, 3), 100, np.uint8), np.full((10, 10), 2.0, np.float32)
    image[:4], depth[:7] = 200, 4.0  # 60 % of the colours are right, 30 % of the depths
    view = labelled(Provenance.IMAGINED, image=image, depth=depth, confidence=0.85, depth_confidence=0.35)
    row = rows_of(view)["imagined"]
    assert row.ece_colour == pytest.approx(0.25)
    assert row.ece_depth == pytest.approx(0.05)
    assert row.confidence == pytest.approx(0.85)
    assert row.depth_confidence == pytest.approx(0.35)
    # Another class does not change it.
    provenance = np.where(mask(slice(0, 4)), Provenance.OBSERVED, Provenance.IMAGINED)
    rows = rows_of(replace(view, provenance=provenance.astype(np.uint8)))
    assert rows["imagined"].ece_colour == pytest.approx(0.15)
    assert rows["observed"].ece_colour == pytest.approx(0.85)
    assert rows["observed"].ece_depth == pytest.approx(0.35)
    assert rows["imagined"].ece_depth == pytest.approx(0.15)


def test_views_without_confidence_have_no_calibration():
    row = rows_of(labelled(Provenance.IMAGINED))["imagined"]
    assert row.confidence is row.depth_confidence is row.ece_colour is row.ece_depth is None
    assert row.rank_all is row.rank_imagined is row.rank_depth is None


def test_ranks_of_all_and_of_imagined_pixels():
    image = np.broadcast_to(100 + np.arange(10)[:, None, None] * 8, (10, 10, 3)).astype(np.uint8)
    confidence = np.broadcast_to(1 - np.arange(10)[:, None] / 10, (10, 10)).astype(np.float32)
    view = labelled(Provenance.IMAGINED, image=image, confidence=confidence)
    rows = rows_of(view)
    assert rows["imagined"].rank_imagined == pytest.approx(1)
    assert rows["imagined"].rank_all == pytest.approx(1)
    provenance = np.where(mask(slice(5, 10)), Provenance.OBSERVED, Provenance.IMAGINED).astype(np.uint8)
    upside_down = np.where(mask(slice(5, 10)), confidence, 1 - confidence)
    rows = rows_of(replace(view, provenance=provenance, confidence=upside_down))
    assert rows["imagined"].rank_imagined == pytest.approx(-1)
    assert rows["observed"].rank_imagined is None
    assert rows["observed"].rank_all == rows["imagined"].rank_all
    assert -1 < rows["observed"].rank_all < 1


def test_views_of_which_nothing_was_seen_are_counted():
    image = wall().image.copy()
    image[:9] = 255
    unseen = labelled(Provenance.IMAGINED, image=image, confidence=0.5)
    scorer = TruthScorer("place", "single", "model")
    scorer.add(unseen, wall(), SeenPixels(mask(0, slice(0, 4)), NOWHERE))
    scorer.add(labelled(Provenance.IMAGINED, confidence=0.9), wall(), SeenPixels(mask(0, slice(0, 5)), NOWHERE))
    row = scorer.rows()[-1]
    assert row.unseen_views == 1  # 96 %, and 95 % is not more than that
    assert row.unseen_confidence == pytest.approx(0.5)
    assert row.unseen_right_colour == pytest.approx(0.1)


def test_samples_are_bounded_and_repeatable():
    camera, random = Camera(200, 100, 100.0, 100.0, 99.5, 49.5), np.random.default_rng(0)
    image = random.integers(0, 255, (100, 200, 3), dtype=np.uint8)
    truth = View(np.zeros_like(image), camera, np.eye(4), np.ones((100, 200), np.float32))
    confidence = random.random((100, 200)).astype(np.float32)
    label = np.full((100, 200), Provenance.IMAGINED, np.uint8)
    view = EvaluatedView(0, image, truth.depth, 1.0, label, 0.0, confidence=confidence)
    nowhere = np.zeros((100, 200), bool)

    def result():
        scorer = TruthScorer("place", "single", "model")
        scorer.add(view, truth, SeenPixels(nowhere, nowhere))
        return scorer.rows()

    first = result()
    assert first == result()
    assert first[-1].pixels == 20_000
    right = np.abs(image.astype(float)).mean(axis=2) <= 25.5
    assert first[-1].right_colour == pytest.approx(right.mean())  # over all pixels


# --- scenarios, table and JSON ---


@pytest.fixture(scope="module")
def walk():
    """The first test world, small and short; views are rendered once for all tests."""
    return world_sequence("test", 0, views=9, camera=SMALL)


def test_repeated_scenario_evaluates_the_last_request(walk):
    once = make_scenario(walk, "revisit")
    thrice = repeated(once, 3)
    assert thrice.remember
    assert len(thrice.legs) == 3 * len(once.legs)
    for leg, original in zip(thrice.legs, 3 * once.legs, strict=True):
        np.testing.assert_array_equal(leg, original)
    np.testing.assert_array_equal(thrice.path[thrice.evaluated], once.path[once.evaluated])
    assert min(thrice.evaluated) >= 2 * len(once.path)
    for old, new in zip(once.pairs, thrice.pairs, strict=True):
        np.testing.assert_array_equal(thrice.path[list(new)], once.path[list(old)])


def test_views_requested_with_remember_come_from_a_memory_that_has_them(walk):
    scenario = repeated(make_scenario(walk, "single", every=4), 2)
    views = list(imagined_views(GeometricPipeline(), scenario, "cpu"))
    half = len(views) // 2
    assert [view.index for view in views] == list(range(2 * half))
    assert np.mean([v.coverage for v in views[half:]]) > np.mean([v.coverage for v in views[:half]])
    assert all(view.provenance.shape == (48, 64) for view in views)


def test_observations_of_mono_have_no_depth_and_the_truth_has(walk):
    scenario = make_scenario(walk, "mono")
    assert scenario.observed_views[0].depth is None
    np.testing.assert_array_equal(scenario.views_with_depth[0].depth, walk[0].depth)
    assert make_scenario(walk, "single").views_with_depth[0] is walk[0]


def test_pipeline_on_a_world(walk):
    found = evaluate_truth([walk], ["sparse", "mono"], ["geometric"])
    rows = {(row.protocol, row.label): row for row in found}
    assert len(found) == 6
    assert rows["sparse", "observed"].precision > 0.95
    assert rows["sparse", "observed"].recall > 0.8
    assert rows["sparse", "estimated"].share < 0.05
    # Without a depth sensor, nothing is observed.
    assert rows["mono", "observed"].pixels == 0
    assert rows["mono", "observed"].recall is None
    assert rows["mono", "estimated"].recall is not None
    shares = [rows["mono", label].share for label in ("observed", "estimated", "imagined")]
    assert sum(shares) == pytest.approx(1)


def test_a_photo_without_depth_gives_estimated_pixels(walk):
    rows = {row.label: row for row in evaluate_truth([walk.subset([0, 0])], ["mono"], ["geometric"])}
    assert rows["observed"].pixels == 0
    assert rows["estimated"].share == 1  # the only held-out view is the photo itself
    assert rows["estimated"].right_colour == 1
    assert rows["estimated"].precision == pytest.approx(rows["estimated"].recall)


def test_evaluation_of_mono_counts_no_pixel_as_observed(walk):
    baseline, _, ours = evaluate([walk], "mono", ["geometric"], every=4, with_features=False)
    assert ours.frames == baseline.frames == 2
    assert ours.observed_precision is None  # no pixel is labelled as observed
    assert ours.observed_recall == 0
    assert ours.abs_rel is not None
    assert baseline.psnr is not None  # the baseline gets estimated depth
    assert baseline.coverage > 0


def test_rows_are_written_and_read(tmp_path):
    rows = list(rows_of(labelled(Provenance.IMAGINED, confidence=0.5)).values())
    rows += [replace(row, sequence="elsewhere", precision=0.5) for row in rows]
    (*_, imagined) = truth_means(rows)
    assert (imagined.sequence, imagined.label, imagined.frames, imagined.precision) == ("mean", "imagined", 2, 0.75)
    assert imagined.pixels == 200
    file = tmp_path / "out" / "rows.json"
    write_truth(rows, file)
    content = json.loads(file.read_text())
    assert set(content) == {"rows", "means"}
    assert all(set(row) >= KEYS for row in (*content["rows"], *content["means"]))
    assert [row["class"] for row in content["rows"][:3]] == ["observed", "estimated", "imagined"]
    assert content["rows"][0]["precision"] is None
    assert read_truth(file) == rows
    assert to_dict(rows[0])["class"] == "observed"
    assert truth_table(rows).row_count == 9
    file.write_text("[]")
    with pytest.raises(ValueError, match="holds no rows"):
        read_truth(file)


def test_command_prints_the_table_and_writes_the_rows(walk, tmp_path, monkeypatch):
    monkeypatch.setattr(world_sequences, "world_sequence", lambda split, index: walk)
    file = tmp_path / "rows.json"
    arguments = ["evaluate", "--truth", "--data", "worlds:test:1", "--protocol", "single", "--protocol", "mono"]
    result = CliRunner().invoke(app, [*arguments, "--every", "4", "--remember", "--json", str(file)])
    assert result.exit_code == 0, result.output
    assert "Provenance against ground truth" in result.stdout
    rows = json.loads(file.read_text())["rows"]
    assert [(row["protocol"], row["class"]) for row in rows] == [
        (protocol, label) for protocol in ("single", "mono") for label in ("observed", "estimated", "imagined")
    ]
    assert all(set(row) >= KEYS for row in rows)
    assert {row["requests"] for row in rows} == {3}
    assert {row["pipeline"] for row in rows} == {"geometric"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--truth", "--depth"], "--truth evaluates provenance only"),
        (["--remember"], "--remember needs --truth"),
        (["--truth", "--protocol", "cloud"], "'cloud' is none of them"),
        (["--truth", "--protocol", "double"], "'double' is none of them"),
        (["--truth", "--pipeline", "open3d+telea"], "does not label its pixels"),
        (["--truth", "--protocol", "mono", "--depth-model", "none"], "needs a depth model"),
    ],
)
def test_unsuitable_options_are_rejected(arguments, words):
    result = CliRunner().invoke(app, ["evaluate", "--data", "worlds:test:1", *arguments])
    assert result.exit_code == 1
    assert words in " ".join(result.stderr.split())


def test_views_without_provenance_are_rejected():
    view = replace(labelled(Provenance.OBSERVED), provenance=None)
    with pytest.raises(ValueError, match="provenance"):
        rows_of(view)
    with pytest.raises(ValueError, match="shape"):
        rows_of(replace(labelled(Provenance.OBSERVED), image=np.zeros((5, 5, 3), np.uint8)))
