"""Rasteriser of Gaussians: images beside a dense reference, derivatives, occlusion, large and invalid Gaussians."""

import numpy as np
import pytest
import torch
from dense_gaussians import render_dense
from scipy.spatial.transform import Rotation

from worldstereo_ros.geometry.cameras import Camera, project
from worldstereo_ros.rendering import gaussians
from worldstereo_ros.rendering.gaussians import (
    GaussianBackendError,
    colours_from_harmonics,
    render_gaussians,
)
from worldstereo_ros.utils.errors import InputError

CAMERA = Camera(37, 29, 40.0, 42.0, 17.3, 14.1)
POSE = np.eye(4)
POSE[:3, :3] = Rotation.from_euler("xyz", [0.1, 0.2, -0.05]).as_matrix()
POSE[:3, 3] = (-0.3, 0.1, -0.2)
NAMES = ("means", "quaternions", "scales", "opacities", "colours")


def random_gaussians(count=40, dtype=torch.float64, opacity=0.9):
    """Gaussians in and around the image; three of them are far outside, where the Jacobian is limited."""
    generator = torch.Generator().manual_seed(1)

    def uniform(*shape):
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    means = torch.stack([uniform(count) * 2 - 1, uniform(count) * 1.6 - 0.8, uniform(count) * 2 + 1], 1)
    means[:3, 0] *= 4
    parts = (
        means,
        uniform(count, 4) - 0.5,
        uniform(count, 3) * 0.2 + 0.02,
        uniform(count) * opacity + 0.05,
        uniform(count, 3),
    )
    return [part.to(dtype) for part in parts]


def one(mean=(0.0, 0.0, 2.0), scales=(0.1, 0.1, 0.1), opacity=1.0, colour=(1.0, 0.5, 0.25), rotation=(1.0, 0, 0, 0)):
    parts = ([mean], [rotation], [scales], [opacity], [colour])
    return [torch.tensor(part, dtype=torch.float32) for part in parts]


def joined(*parts):
    return [torch.cat(tensors) for tensors in zip(*parts, strict=True)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_images_equal_a_dense_reference(dtype):
    parts = random_gaussians(300, dtype, opacity=0.6)
    ours = render_gaussians(*parts, CAMERA, POSE)
    colour, alpha = render_dense(*parts, CAMERA, POSE)
    # Boxes and early stops leave out less than a thousandth.
    torch.testing.assert_close(ours.colour, colour, atol=2e-4, rtol=0)
    torch.testing.assert_close(ours.alpha, alpha, atol=2e-4, rtol=0)
    assert 0.5 < alpha.mean() < 1


def test_derivatives_equal_finite_differences():
    parts = random_gaussians(24)
    weights = torch.rand(29, 37, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)

    def loss(*parts):
        image = render_gaussians(*parts, CAMERA, POSE, background=(0.3, 0.5, 0.7), threads=2)
        values = torch.cat([image.colour, image.alpha[..., None], image.depth[..., None]], -1)
        return (values * weights).sum()

    leaves = [part.clone().requires_grad_() for part in parts]
    loss(*leaves).backward()
    step = 1e-6
    for name, leaf in zip(NAMES, leaves, strict=True):
        numeric = torch.zeros_like(leaf)
        values = leaf.detach().view(-1)
        for index in range(len(values)):
            before = values[index].item()
            results = []
            for shift in (step, -step):
                values[index] = before + shift
                with torch.no_grad():
                    results.append(loss(*leaves))
            values[index] = before
            numeric.view(-1)[index] = (results[0] - results[1]) / (2 * step)
        assert numeric.abs().max() > 0.1, name
        scale = numeric.abs().max().item()
        torch.testing.assert_close(leaf.grad, numeric, atol=1e-7 * scale, rtol=1e-5, msg=name)


def test_derivatives_equal_those_of_the_dense_reference_in_single_precision():
    parts = random_gaussians(200, opacity=0.5)
    gradients = []
    for dtype, renderer in ((torch.float64, render_dense), (torch.float32, render_gaussians)):
        leaves = [part.to(dtype, copy=True).requires_grad_() for part in parts]
        image = renderer(*leaves, CAMERA, POSE)
        colour, alpha = image if isinstance(image, tuple) else (image.colour, image.alpha)
        (colour.square().sum() + alpha.sum()).backward()
        gradients.append([leaf.grad.double() for leaf in leaves])
    for name, expected, found in zip(NAMES, *gradients, strict=True):
        assert (found - expected).norm() < 0.01 * expected.norm(), name


def test_images_do_not_depend_on_threads_or_order():
    parts = random_gaussians(500, torch.float32)
    first = render_gaussians(*parts, CAMERA, POSE, threads=1)
    shuffled = torch.randperm(500, generator=torch.Generator().manual_seed(0))
    for other in (
        render_gaussians(*parts, CAMERA, POSE, threads=3),
        render_gaussians(*(part[shuffled] for part in parts), CAMERA, POSE),
    ):
        assert torch.equal(first.colour, other.colour)
        assert torch.equal(first.depth, other.depth)


def test_a_gaussian_lies_where_its_centre_projects_to():
    centre = np.array([[0.11, -0.07, 2.3]])
    image = render_gaussians(*one(tuple(centre[0]), (0.02, 0.02, 0.02)), CAMERA, POSE)
    (pixel,), (depth,) = project(centre, CAMERA, POSE)
    y, x = np.meshgrid(np.arange(29), np.arange(37), indexing="ij")
    weight = image.alpha.numpy() / image.alpha.sum().item()
    assert (weight * x).sum() == pytest.approx(pixel[0], abs=0.01)
    assert (weight * y).sum() == pytest.approx(pixel[1], abs=0.01)
    at = tuple(np.rint(pixel[::-1]).astype(int))
    assert image.depth[at].item() == pytest.approx(depth, abs=1e-4)
    assert image.depth[0, 0] == 0
    assert image.alpha[0, 0] == 0


def test_near_gaussians_hide_far_ones_and_the_background():
    red, blue = one((0, 0, 2), (0.5, 0.5, 0.01), 1.0, (1, 0, 0)), one((0, 0, 3), (2, 2, 0.01), 1.0, (0, 0, 1))
    image = render_gaussians(*joined(blue, red), CAMERA, np.eye(4), background=(0, 1, 0))
    centre = image.colour[14, 17]
    torch.testing.assert_close(centre, torch.tensor([1.0, 0, 0]), atol=2e-3, rtol=0)
    behind = render_gaussians(*red, CAMERA, np.eye(4), background=(0, 1, 0))
    assert behind.colour[0, 0, 1] > 0.9
    half = render_gaussians(*one((0, 0, 2), (0.5, 0.5, 0.01), 0.5, (1, 0, 0)), CAMERA, np.eye(4), background=(0, 1, 0))
    torch.testing.assert_close(half.colour[14, 17], torch.tensor([0.5, 0.5, 0]), atol=0.01, rtol=0)


def test_rotated_discs_are_seen_from_the_side_as_lines():
    flat = one((0, 0, 2), (0.3, 0.3, 0.001))
    facing = render_gaussians(*flat, CAMERA, np.eye(4)).alpha.sum()
    turned = list(flat)
    turned[1] = torch.tensor([[np.cos(np.pi / 4), 0, np.sin(np.pi / 4), 0]], dtype=torch.float32)
    aside = render_gaussians(*turned, CAMERA, np.eye(4)).alpha
    assert aside.sum() < 0.3 * facing
    assert (aside.sum(0) > 0.5).sum() < (aside.sum(1) > 0.1).sum()  # upright: few columns, many rows


@pytest.mark.parametrize(("index", "value"), [(0, np.nan), (0, np.inf), (2, np.nan), (2, 1e30), (3, np.nan), (1, 0.0)])
def test_gaussians_that_are_not_finite_are_not_drawn(index, value):
    good = one()
    bad = one((0, 0, 1.5), colour=(0, 0, 0))
    bad[index][:] = value
    leaves = [part.requires_grad_() for part in joined(good, bad)]
    image = render_gaussians(*leaves, CAMERA, np.eye(4))
    image.colour.sum().backward()
    torch.testing.assert_close(image.colour, render_gaussians(*good, CAMERA, np.eye(4)).colour)
    assert all(torch.isfinite(leaf.grad).all() for leaf in leaves)
    assert all((leaf.grad[1] == 0).all() for leaf in leaves)


def test_gaussians_behind_the_camera_and_none_at_all_give_the_background():
    nothing = [part[:0] for part in one()]
    for parts in (one((0, 0, -2)), one((0, 0, 0.005)), nothing, one(opacity=0.003)):
        leaves = [part.requires_grad_() for part in parts]
        image = render_gaussians(*leaves, CAMERA, np.eye(4), background=(0.2, 0.3, 0.4))
        assert torch.equal(image.colour, torch.tensor([0.2, 0.3, 0.4]).expand(29, 37, 3))
        assert image.alpha.max() == 0
        image.colour.sum().backward()
        assert all((leaf.grad == 0).all() for leaf in leaves)


def test_precision_holds_far_from_the_origin():
    offset = np.array([4000.0, -3000.0, 100.0])
    near = render_gaussians(*one((0, 0, 2)), CAMERA, np.eye(4))
    pose = np.eye(4)
    pose[:3, 3] = offset + 1e-4  # finer than float32 holds at this place
    far = render_gaussians(*one(tuple(offset + np.array([0, 0, 2]))), CAMERA, pose)
    torch.testing.assert_close(far.alpha, near.alpha, atol=5e-3, rtol=0)


def test_harmonics_of_degree_one_are_brighter_from_one_side():
    harmonics = torch.zeros(1, 4, 3)
    harmonics[0, 0], harmonics[0, 3] = 0.5, 0.4  # the last one is along -x of the direction to the Gaussian
    means = torch.zeros(1, 3)
    left = colours_from_harmonics(harmonics, means, np.array([-2.0, 0, 0]))
    right = colours_from_harmonics(harmonics, means, np.array([2.0, 0, 0]))
    plain = colours_from_harmonics(harmonics[:, :1], means, np.array([-2.0, 0, 0]))
    torch.testing.assert_close(0.5 * (left + right), plain)
    assert (right > left).all()
    assert right[0, 0].item() == pytest.approx(0.5 + 0.28209479 * 0.5 + 0.48860251 * 0.4, abs=1e-6)
    with pytest.raises(InputError, match="harmonics have shape"):
        colours_from_harmonics(torch.zeros(1, 2, 3), means, np.zeros(3))


def test_wrong_shapes_and_types_are_refused():
    for index, name in enumerate(NAMES):
        parts = one()
        parts[index] = parts[index][None]
        with pytest.raises(InputError, match=name):
            render_gaussians(*parts, CAMERA, np.eye(4))
        parts = one()
        parts[index] = parts[index].half()
        with pytest.raises(InputError, match="float"):
            render_gaussians(*parts, CAMERA, np.eye(4))


def test_gaussians_that_would_need_too_much_memory_are_refused(monkeypatch):
    monkeypatch.setattr(gaussians, "MAX_TILE_ENTRIES", 5)
    with pytest.raises(InputError, match="cover 6 tiles of 16x16 pixels"):
        render_gaussians(*one(scales=(1, 1, 1)), CAMERA, np.eye(4))


def test_a_gpu_without_gsplat_is_one_clear_error():
    parts = [part.to("meta") for part in one()]  # any device but the CPU
    with pytest.raises(GaussianBackendError, match="needs gsplat"):
        render_gaussians(*parts, CAMERA, np.eye(4))
