"""Point splatting: coverage, depth, provenance, and bitwise agreement of the numba and torch backends."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from worldstereo_ros.geometry.cameras import Camera, unproject
from worldstereo_ros.geometry.provenance import Provenance
from worldstereo_ros.geometry.trajectories import trajectory
from worldstereo_ros.rendering import _splat_torch, splatting
from worldstereo_ros.rendering.splatting import render

CAMERA = Camera.from_fov(64, 48, 1.2)
HERE = np.eye(4)[None]
LAYERS = ("colour", "depth", "covered", "provenance")


def cloud(points, colour=(200, 50, 20), observed=True, spacing=0.01):
    points = np.asarray(points, np.float32).reshape(-1, 3)
    count = len(points)
    return (
        points,
        np.broadcast_to(np.asarray(colour, np.uint8), (count, 3)).copy(),
        np.broadcast_to(np.asarray(observed, bool), count).copy(),
        np.broadcast_to(np.asarray(spacing, np.float32), count).copy(),
    )


def joined(*clouds):
    return tuple(np.concatenate(parts) for parts in zip(*clouds, strict=True))


def wall(z, half=3.0, gap=0.01, **kwargs):
    """A square grid of points across the view, `gap` apart, rotated against the pixel grid."""
    at = np.arange(-half, half, gap)
    x, y = (a.ravel() for a in np.meshgrid(at, at))
    x, y = 0.96 * x - 0.28 * y, 0.28 * x + 0.96 * y
    return cloud(np.stack([x, y, np.full_like(x, z)], axis=1), **{"spacing": gap, **kwargs})


def same(a, b):
    for name in LAYERS:
        np.testing.assert_array_equal(getattr(a, name).numpy(), getattr(b, name).numpy(), err_msg=name)


def test_small_point_covers_one_pixel():
    u, v, z = 17, 30, 2.5
    point = [(u - CAMERA.cx) / CAMERA.fx * z, (v - CAMERA.cy) / CAMERA.fy * z, z]
    frame = render(*cloud([point], spacing=0.001), CAMERA, HERE)
    assert frame.covered.nonzero().tolist() == [[0, v, u]]
    assert frame.colour[0, v, u].tolist() == [200, 50, 20]
    assert frame.depth[0, v, u].item() == pytest.approx(z, abs=1e-5)
    assert frame.observed[0, v, u]
    assert (frame.colour[0][~frame.covered[0]] == 128).all()
    assert (frame.depth[0][~frame.covered[0]] == 0).all()


@pytest.mark.parametrize("gap", [0.004, 0.02, 0.05, 0.15])
def test_surface_is_closed_at_any_density(gap):
    frame = render(*wall(2.0, gap=gap), CAMERA, HERE, close_holes=False)
    assert frame.covered.all()
    assert (frame.colour == torch.tensor([200, 50, 20])).all()
    np.testing.assert_allclose(frame.depth.numpy(), 2.0, atol=1e-3)


@pytest.mark.parametrize("gap", [0.005, 0.03, 0.08])
def test_silhouette_keeps_its_size(gap):
    points, *rest = wall(2.0, gap=gap)
    inside = np.abs(points[:, :2]).max(axis=1) < 0.6
    frame = render(points[inside], *(part[inside] for part in rest), CAMERA, HERE)
    true_area = (2 * 0.6 * CAMERA.fx / 2.0) ** 2
    pixels = gap * CAMERA.fx / 2.0
    rim = (true_area**0.5 + 2 * max(1.0, 0.8 * pixels)) ** 2
    assert 0.93 * true_area < frame.covered.sum().item() <= rim


def test_close_holes_hides_the_surface_behind():
    front = wall(1.5, gap=0.045, spacing=0.02)  # spacing below the gap: the discs leave pinholes
    back = wall(2.5, gap=0.01, colour=(0, 255, 0))
    unclosed = render(*joined(front, back), CAMERA, HERE, close_holes=False)
    closed = render(*joined(front, back), CAMERA, HERE)
    leaks = [float((frame.depth[:, 4:-4, 4:-4] > 2).float().mean()) for frame in (unclosed, closed)]
    assert leaks[0] > 0.1
    assert leaks[1] < 0.002
    # Holes without a surface behind are closed too.
    holes = render(*front, CAMERA, HERE, close_holes=False)
    filled = render(*front, CAMERA, HERE)
    assert (~holes.covered[:, 4:-4, 4:-4]).float().mean() > 0.1
    assert (~filled.covered[:, 4:-4, 4:-4]).float().mean() < 0.002
    assert (filled.colour[filled.covered] == torch.tensor([200, 50, 20])).all()


def test_close_holes_keeps_wide_openings():
    points, *rest = wall(1.0, gap=0.01)
    window = np.abs(points[:, :2]).max(axis=1) > 0.15  # 14 pixels wide
    front = (points[window], *(part[window] for part in rest))
    frame = render(*joined(front, wall(3.0, colour=(0, 255, 0))), CAMERA, HERE)
    middle = frame.colour[0, 20:28, 28:36]
    assert (middle == torch.tensor([0, 255, 0], dtype=torch.uint8)).all()
    assert frame.depth[0, 24, 32].item() == pytest.approx(3.0, abs=1e-3)
    edge = frame.depth[0]
    assert ((edge - 1).abs() < 0.01).logical_or((edge - 3).abs() < 0.01).all()


def test_noise_of_a_surface_is_averaged():
    rng = np.random.default_rng(0)
    points, _, observed, spacing = wall(2.0, gap=0.006)
    noisy = rng.normal(120, 30, (len(points), 3)).clip(0, 255).astype(np.uint8)
    points = points.copy()
    points[:, 2] += rng.normal(0, 0.005, len(points)).astype(np.float32)
    frame = render(points, noisy, observed, spacing, CAMERA, HERE)
    assert frame.colour.float().std() < 12
    assert abs(frame.colour.float().mean() - 120) < 1
    # The depth is not biased towards the nearest points.
    assert abs(frame.depth.mean().item() - 2.0) < 0.002


def test_depth_of_a_slanted_plane_is_accurate():
    x, y = (a.ravel() for a in np.meshgrid(np.arange(-2, 2, 0.01), np.arange(-2, 2, 0.01)))
    frame = render(*cloud(np.stack([x, y, 2 + 0.8 * x], axis=1), spacing=0.012), CAMERA, HERE)
    rays = CAMERA.rays()
    true = 2 / (1 - 0.8 * rays[..., 0])
    known = frame.covered[0].numpy() & (true > 1.2) & (true < 3)
    assert known.mean() > 0.6
    error = np.abs(frame.depth[0].numpy() - true)[known] / true[known]
    assert error.mean() < 0.004
    assert error.max() < 0.03


def test_observed_points_occlude_imagined_points_of_the_same_surface():
    seen, imagined = wall(2.0, colour=(10, 10, 10)), wall(1.99, colour=(250, 250, 250), observed=False)
    frame = render(*joined(seen, imagined), CAMERA, HERE)
    assert frame.observed.all()
    assert (frame.colour == 10).all()
    np.testing.assert_allclose(frame.depth.numpy(), 2.0, atol=1e-3)
    # An imagined surface clearly in front occludes the observed one.
    frame = render(*joined(seen, wall(1.5, colour=(250, 250, 250), observed=False)), CAMERA, HERE)
    assert not frame.observed.any()
    assert (frame.colour == 250).all()
    np.testing.assert_allclose(frame.depth.numpy(), 1.5, atol=1e-3)


def test_colours_of_observed_and_imagined_points_are_not_mixed():
    points, colours, observed, spacing = wall(2.0, gap=0.02)
    observed = points[:, 0] < 0
    colours[:] = np.where(observed, 0, 255)[:, None]
    frame = render(points, colours, observed, spacing, CAMERA, HERE)
    assert frame.covered.all()
    assert set(frame.colour.unique().tolist()) == {0, 255}
    assert ((frame.colour[..., 0] == 0) == frame.observed).all()
    assert 0.4 < frame.observed.float().mean() < 0.6


def test_estimated_points_lie_between_observed_and_imagined_points_of_a_surface():
    observed, estimated, imagined = (
        (*wall(distance, colour=(grey, grey, grey))[:2], kind, wall(2.0)[3])
        for distance, grey, kind in ((2.0, 10, 3), (1.995, 100, 2), (1.99, 250, 1))
    )

    def shown(*walls):
        arrays = [np.concatenate([w[k] for w in walls]) for k in (0, 1, 3)]
        kinds = np.concatenate([np.full(len(w[0]), w[2], np.uint8) for w in walls])
        frame = render(arrays[0], arrays[1], kinds, arrays[2], CAMERA, HERE)
        return set(frame.provenance.unique().tolist()), set(frame.colour.unique().tolist())

    assert shown(imagined, estimated, observed) == ({Provenance.OBSERVED}, {10})
    assert shown(imagined, estimated) == ({Provenance.ESTIMATED}, {100})
    assert shown(imagined, observed) == ({Provenance.OBSERVED}, {10})
    assert shown(imagined) == ({Provenance.IMAGINED}, {250})


def random_cloud(seed, count=3000):
    rng = np.random.default_rng(seed)
    points = rng.normal(0, 1, (count, 3)) + np.array([0, 0, 2])
    points[: count // 2, 2] = 2 + 0.3 * points[: count // 2, 0]
    points[::97] = np.nan
    points[5] = np.inf
    return (
        points.astype(np.float32),
        rng.integers(0, 256, (count, 3), dtype=np.uint8),
        rng.choice(np.array([1, 2, 3], np.uint8), count, p=(0.2, 0.3, 0.5)),
        rng.uniform(1e-3, 0.2, count).astype(np.float32),
    )


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.booleans(), st.floats(0.5, 9), st.integers(1, 3))
def test_backends_agree_bit_for_bit(seed, close_holes, max_footprint, threads):
    arrays = random_cloud(seed)
    poses = np.stack([np.eye(4)] * 2)
    poses[1, :3, :3] = Rotation.random(random_state=seed % 1000).as_matrix()
    poses[1, :3, 3] = 0.3, -0.2, 0.5
    options = {"close_holes": close_holes, "max_footprint": max_footprint}
    fast = render(*arrays, CAMERA, poses, backend="numba", threads=threads, **options)
    same(fast, render(*arrays, CAMERA, poses, backend="torch", **options))
    assert fast.covered.float().mean() > 0.05
    order = np.random.default_rng(seed).permutation(len(arrays[0]))
    same(fast, render(*(array[order] for array in arrays), CAMERA, poses, **options))


def test_torch_backend_renders_in_chunks(monkeypatch):
    arrays = random_cloud(3)
    whole = render(*arrays, CAMERA, HERE, backend="torch")
    monkeypatch.setattr(_splat_torch, "MAX_PAIRS", 1000)
    same(whole, render(*arrays, CAMERA, HERE, backend="torch"))


@pytest.mark.gpu
def test_cuda_agrees_with_the_cpu():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    arrays = random_cloud(1, 200_000)
    on_gpu = render(*arrays, CAMERA, HERE, device="cuda")
    assert on_gpu.colour.is_cuda
    on_cpu = render(*arrays, CAMERA, HERE)
    for name in LAYERS:
        # A fused multiply-add on the device may move a point on the edge of a pixel.
        differ = (getattr(on_gpu, name).cpu() != getattr(on_cpu, name)).float().mean()
        assert differ < (0.01 if name == "colour" else 0.002) or name == "depth"
    assert (on_gpu.depth.cpu() - on_cpu.depth).abs().median() < 1e-4


def test_rendering_restores_an_unprojected_depth_image():
    rng = np.random.default_rng(0)
    depth = (2 + 0.3 * np.sin(np.arange(64) / 9)[None, :] + 0.2 * np.cos(np.arange(48) / 7)[:, None]).astype(np.float32)
    image = rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)
    pose = trajectory("orbit", np.eye(4), 3)[1]
    points = unproject(depth, CAMERA, pose).reshape(-1, 3)
    spacing = (depth / CAMERA.fx).ravel()
    frame = render(points, image.reshape(-1, 3), np.ones(len(points), bool), spacing, CAMERA, pose[None], closure=1.0)
    assert frame.covered.all()
    exact = (frame.colour[0].numpy() == image).all(axis=-1)
    assert exact.mean() > 0.9
    np.testing.assert_allclose(frame.depth[0].numpy(), depth, rtol=2e-3)


def test_rendering_is_exact_far_from_the_origin():
    arrays = wall(2.0, gap=0.02)
    offset = np.array([4096.0, -2048.0, 1024.0])  # moves the points without rounding them
    colours = np.random.default_rng(0).integers(0, 256, arrays[1].shape, dtype=np.uint8)
    near = render(arrays[0], colours, *arrays[2:], CAMERA, HERE)
    moved = HERE.copy()
    moved[0, :3, 3] = offset
    far_points = (arrays[0].astype(np.float64) + offset).astype(np.float32)
    rounded = (far_points.astype(np.float64) - offset).astype(np.float32)
    near = render(rounded, colours, *arrays[2:], CAMERA, HERE)
    same(near, render(far_points, colours, *arrays[2:], CAMERA, moved))


def test_empty_and_invisible_clouds_give_holes():
    for arrays in (cloud(np.zeros((0, 3))), cloud([[0, 0, -1], [0, 0, 0.01], [0, 0, 0]])):
        for backend in ("numba", "torch"):
            frame = render(*arrays, CAMERA, np.stack([np.eye(4)] * 2), backend=backend)
            assert not frame.covered.any()
            assert not frame.observed.any()
            assert frame.colour.shape == (2, 48, 64, 3)
            assert (frame.colour == 128).all()
            assert (frame.depth == 0).all()


def test_many_points_in_one_pixel_do_not_overflow():
    count = 300_000
    arrays = cloud(np.tile([0, 0, 1000.0], (count, 1)), colour=(255, 254, 253), spacing=0.001)
    for backend in ("numba", "torch"):
        frame = render(*arrays, CAMERA, HERE, backend=backend)
        values = frame.colour[frame.covered]
        assert (values == torch.tensor([255, 254, 253], dtype=torch.uint8)).all()
        np.testing.assert_allclose(frame.depth[frame.covered].numpy(), 1000, rtol=1e-3)


def test_render_accepts_torch_and_numpy_arrays():
    arrays = random_cloud(2)
    same(render(*arrays, CAMERA, HERE), render(*(torch.from_numpy(a) for a in arrays), CAMERA, HERE))


def test_render_works_without_numba(monkeypatch):
    arrays = random_cloud(2)
    expected = render(*arrays, CAMERA, HERE)
    monkeypatch.setattr(splatting, "_splat_numba", None)
    same(expected, render(*arrays, CAMERA, HERE))
    with pytest.raises(ValueError, match="numba"):
        render(*arrays, CAMERA, HERE, backend="numba")


@pytest.mark.parametrize(
    ("place", "value", "word"),
    [
        (0, np.zeros((5, 2), np.float32), "points"),
        (0, np.zeros((5, 3), np.int32), "points"),
        (1, np.zeros((5, 3), np.float32), "colours"),
        (1, np.zeros((4, 3), np.uint8), "colours"),
        (2, np.zeros(5, np.float32), "provenance"),
        (2, np.array([3, 1, 0, 1, 3], np.uint8), "provenance"),  # a mask is bool, not 0 and 1
        (2, np.array([3, 1, 4, 1, 3], np.uint8), "provenance"),
        (3, np.zeros(4, np.float32), "spacing"),
    ],
)
def test_render_rejects_invalid_clouds(place, value, word):
    arrays = list(cloud(np.ones((5, 3))))
    arrays[place] = value
    with pytest.raises(ValueError, match=word):
        render(*arrays, CAMERA, HERE)


def test_render_rejects_invalid_poses_and_backends():
    arrays = cloud(np.ones((5, 3)))
    with pytest.raises(ValueError, match="shape"):
        render(*arrays, CAMERA, np.eye(4))
    with pytest.raises(ValueError, match="backend"):
        render(*arrays, CAMERA, HERE, backend="opengl")
