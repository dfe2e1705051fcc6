"""Imagining panoramas: at another place, with estimated distances, and by the command."""

import json

import numpy as np
import pytest
from helpers.panoramas import ROUND, all_round, box_colour, sphere_directions
from typer.testing import CliRunner

from worldstereo_ros.cli.main import app
from worldstereo_ros.cli.panorama import read_distance
from worldstereo_ros.depth.estimators import DepthEstimate
from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.geometry.provenance import Provenance
from worldstereo_ros.geometry.views import View
from worldstereo_ros.io.images import read_image, write_image
from worldstereo_ros.io.view_labels import read_provenance
from worldstereo_ros.panorama.depth import panorama_distance
from worldstereo_ros.panorama.imagine import ORDERS, imagine_panorama, observe_panorama, ring_order, seam_joint
from worldstereo_ros.panorama.perspective_views import panorama_views, pose_from_angles, rings
from worldstereo_ros.pipelines.geometric.pipeline import GeometricPipeline
from worldstereo_ros.world import EmptyMemoryError, WorldModel

# --- at another place ---


def pose_at(x: float) -> np.ndarray:
    pose = np.eye(4)
    pose[0, 3] = x
    return pose


def test_ring_order_visits_every_view_once():
    for order in ORDERS:
        for count in (3, 8, 11, 12):
            assert sorted(ring_order(count, order)) == list(range(count))
    both = ring_order(8, "both")
    assert both == [0, 1, 7, 2, 6, 3, 5, 4]
    assert {both[-1], both[-2]} == {seam_joint(8, "both"), seam_joint(8, "both") + 1}
    with pytest.raises(ValueError, match="'spiral' is unknown"):
        ring_order(8, "spiral")


@pytest.fixture(scope="module")
def world(box):
    world = WorldModel(GeometricPipeline())
    remembered = observe_panorama(world, *box)
    assert remembered.points > 1000
    assert remembered.views == 29
    assert remembered.estimated is None
    return world


def test_imagine_panorama_at_another_place(world):
    points, views = len(world.cloud), len(world.bank)
    place = np.eye(4)
    place[:3, 3] = 0.5, 0.0, 0.4
    found = imagine_panorama(world, place, height=64)
    assert (len(world.cloud), len(world.bank)) == (points, views)  # not remembered by default
    directions = sphere_directions(64)
    with np.errstate(divide="ignore"):
        reach = np.where(directions > 0, np.array([2.5, 1.5, 1.6]), np.array([3.5, 1.5, 2.4])) / np.abs(directions)
    distance = reach.min(axis=-1)
    truth = box_colour(directions * distance[..., None] + place[:3, 3])
    error = np.abs(found.panorama.image.astype(int) - truth)
    assert error.mean() < 6
    assert found.panorama.covered.all()
    assert found.panorama.observed.mean() > 0.7
    assert np.median(np.abs(found.panorama.distance / distance - 1)) < 0.03
    assert found.closure.ratio < 2.5
    assert len(found.ring) == len(rings(found.ring[0].camera)[0])
    for number, view in enumerate(found.ring):
        np.testing.assert_allclose(
            view.world_from_camera, place @ pose_from_angles(2 * np.pi * number / len(found.ring), 0)
        )


def test_imagine_panorama_rejects_invalid_arguments(world):
    with pytest.raises(ValueError, match="The panorama pose"):
        imagine_panorama(world, np.full((4, 4), np.nan))
    with pytest.raises(ValueError, match="at least 8 rows"):
        imagine_panorama(world, np.eye(4), height=2)
    with pytest.raises(ValueError, match="is unknown"):
        imagine_panorama(world, np.eye(4), height=64, order="zigzag")
    with pytest.raises(EmptyMemoryError):
        imagine_panorama(WorldModel(GeometricPipeline()), np.eye(4), height=64)


# --- estimated distances ---


class _PerturbedDepth:
    """The depth of the box, with a random scale and shift of inverse depth in every view."""

    def __init__(self, views: list[View], spread: float) -> None:
        self.views, self.spread = views, spread
        self.random = np.random.default_rng(1)

    def __call__(self, image: np.ndarray, camera: Camera) -> np.ndarray:
        true = next(view.depth for view in self.views if np.array_equal(view.image, image))
        scale, shift = np.exp(self.random.uniform(-self.spread, self.spread)), self.random.uniform(-0.05, 0.05)
        with np.errstate(divide="ignore"):
            return np.where(true > 0, scale / (1 / true + shift * self.spread), 0).astype(np.float32)


def test_panorama_distance_aligns_the_views(box, box_views):
    image, distance = box

    def spread(align: bool) -> float:
        found = panorama_distance(image, _PerturbedDepth(box_views, 0.5), camera=ROUND, align=align).distance
        assert (found > 0).all()
        return float(np.log(found / distance).std())

    assert spread(True) < 0.05
    assert spread(True) < 0.3 * spread(False)

    class Sky(_PerturbedDepth):
        def __call__(self, image: np.ndarray, camera: Camera) -> np.ndarray:
            depth = super().__call__(image, camera)
            pose = next(view.world_from_camera for view in self.views if np.array_equal(view.image, image))
            return np.where((camera.rays() @ pose[:3, :3].T)[..., 1] < -0.8, np.float32(0), depth)

    open_above = panorama_distance(image, Sky(box_views, 0.2), camera=ROUND).distance
    assert (open_above[:24] == 0).all()  # no distances are invented
    assert (open_above[64:] > 0).all()


def test_estimated_distances_take_the_scale_of_memory(box, box_views):
    image, distance = box

    class Doubled:
        def __call__(self, image: np.ndarray, camera: Camera) -> np.ndarray:
            views = panorama_views(box[0], 2 * distance, camera=camera, panorama_from_camera=all_round(camera))
            return next(view.depth for view in views if np.array_equal(view.image, image))

    world = WorldModel(GeometricPipeline(), depth_estimator=Doubled())
    observe_panorama(world, *box)
    before = len(world.cloud)
    observe_panorama(world, image)
    outside = (np.abs(world.cloud.points) > np.array([3.3, 1.8, 2.3])).any(axis=1)
    assert outside.mean() < 0.02
    assert len(world.cloud) < 1.7 * before
    empty = WorldModel(GeometricPipeline())
    with pytest.raises(ValueError, match="no distances and no depth estimator"):
        observe_panorama(empty, image)
    assert len(empty.cloud) == len(empty.bank) == 0


class _SureDepth(_PerturbedDepth):
    """With a confidence of 0.8 everywhere."""

    def estimate(self, image: np.ndarray, camera: Camera) -> DepthEstimate:
        depth = self(image, camera)
        return DepthEstimate(depth, np.full(depth.shape, 0.8, np.float32))


def test_confidence_falls_where_views_disagree(box, box_views):
    agreeing = panorama_distance(box[0], _SureDepth(box_views, 0.0), camera=ROUND, align=False)
    assert np.median(agreeing.confidence) == pytest.approx(0.8, abs=0.01)
    disagreeing = panorama_distance(box[0], _SureDepth(box_views, 1.0), camera=ROUND, align=False)
    assert np.median(disagreeing.confidence) < 0.6
    assert disagreeing.agreement.within < 0.7 < agreeing.agreement.within
    aligned = panorama_distance(box[0], _SureDepth(box_views, 1.0), camera=ROUND)
    assert np.median(aligned.confidence) > np.median(disagreeing.confidence) + 0.1
    assert aligned.unaligned.median > 3 * aligned.agreement.median
    assert panorama_distance(box[0], _PerturbedDepth(box_views, 0.5), camera=ROUND).confidence is None


class _LensDepth:
    """True depth of the box for views of any camera, and no confidence."""

    def __init__(self, box: tuple[np.ndarray, np.ndarray]) -> None:
        self.box = box

    def __call__(self, image: np.ndarray, camera: Camera) -> np.ndarray:
        views = panorama_views(*self.box, camera=camera, panorama_from_camera=all_round(camera))
        return next(view.depth for view in views if np.array_equal(view.image, image))


def test_estimated_distances_are_never_observed(box):
    world = WorldModel(GeometricPipeline(), depth_estimator=_LensDepth(box))
    remembered = observe_panorama(world, box[0])
    assert remembered.views == len(world.bank) == 29
    assert remembered.estimated.agreement.median < 0.02
    assert not world.cloud.observed.any()
    assert world.cloud.estimated.all()
    assert all(view.is_observation and view.estimated_mask.all() for view in world.bank.views)
    # The caps around the poles are remembered too.
    elevation = np.degrees(np.arcsin(-world.cloud.points[:, 1] / np.linalg.norm(world.cloud.points, axis=1)))
    assert (elevation > 80).sum() > 20
    assert (elevation < -80).sum() > 20
    found = imagine_panorama(world, pose_at(0.3), height=64)
    assert not found.panorama.observed.any()
    assert found.panorama.estimated.mean() > 0.7
    assert not any(view.observed_mask.any() for view in found.views)
    # Measured distances take over.
    observe_panorama(world, *box)
    assert world.cloud.observed.mean() > 0.8
    assert imagine_panorama(world, pose_at(0.3), height=64).panorama.observed.mean() > 0.7


def test_directions_without_any_distance_are_left_out(box):
    distance = box[1].copy()
    distance[:47] = 0  # more than the view straight up shows
    remembered = observe_panorama(WorldModel(GeometricPipeline()), box[0], distance)
    assert remembered.views == 28


# --- the command ---


def test_panorama_command_writes_panorama_mask_and_figures(box, tmp_path):
    write_image(tmp_path / "given.png", box[0])
    np.save(tmp_path / "distance.npy", box[1])
    arguments = ["--distance", str(tmp_path / "distance.npy"), "--model", "geometric", "--height", "64"]
    out = tmp_path / "out"
    done = CliRunner().invoke(
        app, ["panorama", str(tmp_path / "given.png"), "--at", "-0.5", "0", "0.3", *arguments, "--out", str(out)]
    )
    assert done.exit_code == 0, done.output
    assert read_image(out / "panorama.png").shape == (64, 128, 3)
    files = {"observed.png", "estimated.png", "provenance.png", "distance.png", "sheet.png", "world.wsmap", "imagined"}
    assert files <= {path.name for path in out.iterdir()}
    provenance = read_provenance(out / "provenance.png")
    figures = json.loads((out / "figures.json").read_text())
    assert figures["observed"] == pytest.approx((provenance == Provenance.OBSERVED).mean(), abs=1e-4)
    assert figures["observed"] > 0.5
    assert figures["estimated"] < 0.03  # completed between measured distances
    assert figures["distance_joint"] < 0.05
    assert "distance_agreement" not in figures
    assert figures["at"] == [-0.5, 0.0, 0.3]
    assert figures["ratio"] == pytest.approx(figures["seam"] / figures["joint"])
    assert read_distance(out / "distance.png").shape == (64, 128)


def test_panorama_command_says_that_distances_are_estimated(box, tmp_path):
    write_image(tmp_path / "given.png", box[0])
    out = tmp_path / "out"
    arguments = ["--at", "0.05", "0", "0", "--model", "geometric", "--height", "64", "--out", str(out)]
    done = CliRunner().invoke(app, ["panorama", str(tmp_path / "given.png"), *arguments])
    assert done.exit_code == 0, done.output
    said = " ".join(done.output.split())
    assert "no point counts as observed" in said
    assert "0% is observed" in said
    provenance = read_provenance(out / "provenance.png")
    assert not (provenance == Provenance.OBSERVED).any()
    assert (provenance == Provenance.ESTIMATED).mean() > 0.5
    figures = json.loads((out / "figures.json").read_text())
    assert figures["observed"] == 0 < figures["estimated"]
    assert 0 < figures["distance_agreement"]["median"] < figures["distance_agreement"]["percentile_90"]


def test_panorama_command_rejects_invalid_input_with_one_line(box, tmp_path):
    write_image(tmp_path / "given.png", box[0])
    write_image(tmp_path / "plain.png", box[0][:, :90])
    np.save(tmp_path / "cube.npy", np.zeros((4, 8, 2)))
    np.save(tmp_path / "empty.npy", np.zeros((64, 128)))
    (tmp_path / "broken.npy").write_bytes(b"no array")
    model = ["--model", "geometric", "--out", str(tmp_path / "out")]
    cases = [
        (["missing.png"], "does not exist"),
        (["plain.png", "--distance", "distance.npy"], "twice as wide"),
        (["given.png", "--distance", "cube.npy"], "were expected"),
        (["given.png", "--distance", "empty.npy"], "holds no distance"),
        (["given.png", "--distance", "broken.npy"], "cannot be read"),
        (["given.png", "--distance", "gone.npy"], "cannot be read"),
        (["given.png", "--at", "nan", "0", "0", "--distance", "distance.npy"], "is not finite"),
    ]
    np.save(tmp_path / "distance.npy", box[1])
    for arguments, sentence in cases:
        named = [str(tmp_path / word) if "." in word else word for word in arguments]
        done = CliRunner().invoke(app, ["panorama", *named, *model])
        assert done.exit_code == 1, arguments
        assert sentence in " ".join(done.output.split()), done.output
    assert not (tmp_path / "out").exists()
