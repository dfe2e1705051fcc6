"""Splats from a cloud and their fit to views: discs on surfaces, exposure, held-out views, provenance, bad input."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from worldstereo_ros.geometry.cameras import Camera, unproject
from worldstereo_ros.geometry.provenance import Provenance
from worldstereo_ros.geometry.views import View
from worldstereo_ros.memory.cloud import CloudMemory
from worldstereo_ros.reconstruction import splats as splats_module
from worldstereo_ros.reconstruction.splat_loss import SSIM_SHARE, Target, photometric_loss
from worldstereo_ros.reconstruction.splats import SplatSettings, optimise_splats, splats_from_cloud
from worldstereo_ros.utils.errors import InputError

CAMERA = Camera.from_fov(64, 48, np.radians(60))
BACKGROUND = (0.5, 0.5, 0.5)
pytestmark = pytest.mark.usefixtures("one_thread")


def wall_view(x, *, angle=0.0, gain=1.0):
    """A view of the wall z = 2, with waves as its colours, from (x, 0, 0), turned by `angle` to the left."""
    pose = np.eye(4)
    pose[:3, :3] = Rotation.from_euler("y", -angle).as_matrix()
    pose[0, 3] = x
    rays = CAMERA.rays() @ pose[:3, :3].T
    depth = (2 / rays[..., 2]).astype(np.float32)
    points = unproject(depth, CAMERA, pose)
    waves = np.stack([np.sin(9 * points[..., 0]), np.sin(8 * points[..., 1]), np.cos(6 * points.sum(-1))], -1)
    return View(np.rint(np.clip(gain * (120 + 90 * waves), 0, 255)).astype(np.uint8), CAMERA, pose, depth)


def cloud_of(views, voxel=0.05):
    cloud = CloudMemory(voxel_size=voxel)
    for view in views:
        cloud.insert(view)
    return cloud


def psnr(splats, view):
    image = splats.render(view.camera, view.world_from_camera, background=BACKGROUND).colour.numpy()
    return -10 * np.log10(np.mean((image.clip(0, 1) - view.image / 255) ** 2))


def test_splats_are_discs_along_the_surface():
    cloud = cloud_of([wall_view(0.0)])
    splats = splats_from_cloud(cloud)
    assert len(splats) == len(cloud)
    thin = splats.rotations[np.arange(len(splats)), :, splats.scales.argmin(axis=1)]
    inside = np.abs(splats.means[:, :2]).max(axis=1) < 0.8
    assert np.median(np.abs(thin[inside] @ [0, 0, 1])) > 0.99
    assert np.median(splats.scales[inside].max(1) / splats.scales[inside].min(1)) > 4
    assert np.median(splats.scales.max(1)) == pytest.approx(0.6 * 0.05, rel=0.4)
    image = splats.render(CAMERA, np.eye(4))
    assert image.alpha[8:-8, 8:-8].min() > 0.7
    np.testing.assert_allclose(image.depth[24, 32], 2, atol=0.02)
    given = splats_from_cloud(cloud, normals=np.tile([1.0, 0, 0], (len(cloud), 1)))
    thin = given.rotations[np.arange(len(given)), :, given.scales.argmin(axis=1)]
    np.testing.assert_allclose(np.abs(thin[inside][:, 0]), 1, atol=1e-5)


def test_provenance_and_unit_of_the_cloud_are_kept_when_it_is_thinned():
    cloud = cloud_of([wall_view(0.0)], 0.02)
    classes = np.where(cloud.points[:, 0] > 0, Provenance.OBSERVED, Provenance.IMAGINED).astype(np.uint8)
    parts = CloudMemory(voxel_size=0.02)
    parts.insert_points(cloud.points, cloud.colours, classes)
    splats = splats_from_cloud(parts, max_splats=400, metric=False)
    assert 100 < len(splats) <= 400
    assert splats.metric is False
    right = splats.means[:, 0] > 0.1
    left = splats.means[:, 0] < -0.1
    assert (splats.provenance[right] == Provenance.OBSERVED).all()
    assert (splats.provenance[left] == Provenance.IMAGINED).all()
    shown = splats.render_provenance(CAMERA, np.eye(4))
    assert (shown[10:-10, 40:55] == Provenance.OBSERVED).all()
    assert (shown[10:-10, 10:25] == Provenance.IMAGINED).all()


def test_a_fit_improves_views_that_it_did_not_get():
    given = [wall_view(x, angle=a) for x, a in ((-0.4, -0.1), (-0.15, 0.05), (0.1, 0.0), (0.35, 0.1))]
    held_out = wall_view(0.0)
    start = splats_from_cloud(cloud_of(given, 0.06))
    steps = []
    fit = optimise_splats(
        start, given, SplatSettings(steps=120, seconds=None), on_step=lambda n, share: steps.append((n, share))
    )
    assert psnr(fit.splats, held_out) > psnr(start, held_out) + 3
    assert np.mean(fit.losses[-8:]) < 0.6 * np.mean(fit.losses[:8])
    assert steps[-1] == (120, 1.0)
    assert len(fit.splats) > len(start)  # some were split
    assert (fit.splats.provenance == Provenance.OBSERVED).all()


def test_exposure_of_each_view_is_found():
    dark, bright = wall_view(-0.2, gain=0.8), wall_view(0.2, gain=1.1)
    fit = optimise_splats(
        splats_from_cloud(cloud_of([dark, bright])), [dark, bright],
        SplatSettings(steps=150, seconds=None, exposure_rate=0.02, densify_share=0),
    )  # fmt: skip
    levels = fit.gains * 0.47 + fit.offsets  # of the mean colour
    assert (levels[1] > 1.15 * levels[0]).all()
    np.testing.assert_allclose(np.log(fit.gains).mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(fit.offsets.mean(0), 0, atol=1e-6)


def test_imagined_views_count_less():
    seen = wall_view(0.0)
    wrong = View(255 - seen.image, CAMERA, seen.world_from_camera, seen.depth, np.zeros((48, 64), bool))
    settings = SplatSettings(steps=100, seconds=None, densify_share=0, exposure_rate=0.0, imagined_weight=0.0)
    start = splats_from_cloud(cloud_of([seen]))
    fit = optimise_splats(start, [seen, wrong], settings)
    assert psnr(fit.splats, seen) > psnr(start, seen) + 2


def test_a_fit_can_be_stopped_and_keeps_to_its_time():
    view = wall_view(0.0)
    start = splats_from_cloud(cloud_of([view], 0.1))

    def stop(number, _):
        if number == 3:
            raise KeyboardInterrupt

    threads = torch.get_num_threads()
    with pytest.raises(KeyboardInterrupt):
        optimise_splats(start, [view], on_step=stop)
    assert torch.get_num_threads() == threads
    fit = optimise_splats(start, [view], SplatSettings(steps=10**9, seconds=0.2))
    assert 1 <= len(fit.losses) < 10**5


def test_the_same_seed_gives_the_same_splats(monkeypatch):
    view = wall_view(0.0)
    start = splats_from_cloud(cloud_of([view], 0.1))
    first, second = (optimise_splats(start, [view], SplatSettings(steps=12, seconds=None)) for _ in range(2))
    np.testing.assert_array_equal(first.splats.means, second.splats.means)
    monkeypatch.setattr(splats_module, "MAX_TARGET_BYTES", 0)  # nothing is kept between the steps
    third = optimise_splats(start, [view], SplatSettings(steps=12, seconds=None))
    np.testing.assert_array_equal(first.splats.means, third.splats.means)


def test_derivatives_of_the_loss_equal_finite_differences():
    rng = np.random.default_rng(0)
    weight = rng.uniform(0, 1, (17, 23)).astype(np.float32)
    # The photographs are darker everywhere, since the absolute difference has no derivative at 0.
    for target in (
        Target.of(rng.integers(0, 30, (17, 23, 3), dtype=np.uint8)),
        Target.of(rng.integers(0, 30, (17, 23, 3), dtype=np.uint8), weight),
    ):
        values = [rng.uniform(0.3, 0.8, (17, 23, 3)), rng.uniform(0.8, 1.2, 3), rng.uniform(-0.1, 0.1, 3)]
        leaves = [torch.tensor(value, dtype=torch.float32, requires_grad=True) for value in values]
        photometric_loss(*leaves, target).backward()
        for which, leaf in enumerate(leaves):
            direction = rng.normal(size=leaf.shape).astype(np.float32)
            results = []
            for sign in (1, -1):
                moved = [torch.tensor(value, dtype=torch.float32) for value in values]
                moved[which] += sign * 1e-3 * torch.from_numpy(direction)
                results.append(float(photometric_loss(*moved, target)))
            expected = (results[0] - results[1]) / 2e-3
            assert float((leaf.grad * torch.from_numpy(direction)).sum()) == pytest.approx(expected, rel=0.01, abs=2e-4)


def test_the_loss_is_zero_for_the_photograph_itself():
    image = np.random.default_rng(0).integers(0, 256, (20, 24, 3), dtype=np.uint8)
    colours, one, zero = torch.from_numpy(image.astype(np.float32) / 255), torch.ones(3), torch.zeros(3)
    assert float(photometric_loss(colours, one, zero, Target.of(image))) == pytest.approx(0, abs=1e-6)
    shifted = float(photometric_loss(colours, one, zero + 0.1, Target.of(image)))
    assert shifted > (1 - SSIM_SHARE) * 0.1


def test_bad_input_is_refused_with_what_to_do():
    view = wall_view(0.0)
    cloud = cloud_of([view], 0.1)
    splats = splats_from_cloud(cloud)
    with pytest.raises(InputError, match="no points with finite"):
        splats_from_cloud(CloudMemory())
    with pytest.raises(InputError, match="normals have shape"):
        splats_from_cloud(cloud, normals=np.zeros((3, 3)))
    with pytest.raises(InputError, match="max_splats is 0"):
        splats_from_cloud(cloud, max_splats=0)
    with pytest.raises(InputError, match="0 views came"):
        optimise_splats(splats, [])
    with pytest.raises(InputError, match="different units"):
        optimise_splats(splats, [replace(view, metric=False)])
    with pytest.raises(InputError, match="steps is 0"):
        optimise_splats(splats, [view], SplatSettings(steps=0))
    with pytest.raises(InputError, match="harmonics_degree is 2"):
        optimise_splats(splats, [view], SplatSettings(harmonics_degree=2))


def test_a_cloud_of_few_points_makes_splats():
    memory = CloudMemory(voxel_size=0.1)
    memory.insert_points(np.array([[0, 0, 2], [1, 0, 2.0]]), np.full((2, 3), 9, np.uint8), Provenance.ESTIMATED.value)
    splats = splats_from_cloud(memory)
    assert len(splats) == 2
    assert (splats.provenance == Provenance.ESTIMATED).all()


def test_colours_may_change_with_the_direction():
    views = [wall_view(-0.4), wall_view(0.4, gain=0.7)]
    start = splats_from_cloud(cloud_of(views, 0.1))
    settings = {"steps": 80, "seconds": None, "exposure_rate": 0.0, "densify_share": 0.0, "coarse_share": 0.0}
    plain, directional = (
        optimise_splats(start, views, SplatSettings(harmonics_degree=degree, **settings)) for degree in (0, 1)
    )
    assert directional.splats.harmonics.shape[1] == 4
    assert np.mean(directional.losses[-6:]) < np.mean(plain.losses[-6:])
