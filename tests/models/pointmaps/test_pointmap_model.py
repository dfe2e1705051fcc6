import dataclasses

import pytest
import torch

from worldstereo_ros.models.autoencoders.image import ImageAutoencoder
from worldstereo_ros.models.checkpoints.weights import CheckpointError
from worldstereo_ros.models.pointmaps.autoencoder import PointmapAutoencoder
from worldstereo_ros.models.pointmaps.geometry import decode_points, encode_points, relative_poses, world_points
from worldstereo_ros.models.pointmaps.model import PointmapModel, load_pointmap_model
from worldstereo_ros.models.pointmaps.network import PointmapNetwork
from worldstereo_ros.models.pointmaps.prior import anchored_prior
from worldstereo_ros.models.pointmaps.sweep import OFFSETS, sweep
from worldstereo_ros.models.pointmaps.types import PointmapPrior
from worldstereo_ros.utils.errors import InputError

SIZE = (32, 48)
FRAMES = 3
INTRINSICS = torch.tensor([[40.0, 40.0, 23.5, 15.5], [50.0, 50.0, 20.0, 15.0]])


@pytest.fixture(scope="module")
def image_autoencoder():
    torch.manual_seed(0)
    return ImageAutoencoder(widths=(8, 8, 8), encoder_blocks=(1, 1, 1), decoder_blocks=(1, 1, 1)).eval()


@pytest.fixture(scope="module")
def model(image_autoencoder):
    torch.manual_seed(1)
    network = PointmapNetwork(width=32, heads=2, depth=1, pixel_widths=(8, 12)).eval()
    return PointmapModel(
        network, PointmapAutoencoder.from_image_autoencoder(image_autoencoder).eval(), image_autoencoder
    )


def clip(seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(2, FRAMES, 3, *SIZE, generator=generator) * 2 - 1
    log_depth = 0.2 * torch.randn(2, FRAMES, *SIZE, generator=generator) + 1
    poses = torch.eye(4).repeat(2, FRAMES, 1, 1)
    poses[:, :, 0, 3] = torch.arange(FRAMES) * 0.1
    zeros = torch.zeros_like(log_depth)
    return images, PointmapPrior(log_depth, zeros - 2, poses, zeros, zeros)


def test_untrained_the_prior_is_returned(model):
    images, prior = clip()
    for passes in (1, 2):
        prediction = model.refine(images, INTRINSICS, prior, passes=passes)
        assert torch.equal(prediction.log_depth, prior.log_depth)
        assert torch.equal(prediction.log_scale, prior.log_sigma)
        assert (prediction.dynamic < 0).all()
        assert (prediction.valid > 0).all()
    expected = world_points(prior.log_depth.exp(), prior.poses, INTRINSICS)
    torch.testing.assert_close(prediction.points(prior.poses, INTRINSICS), expected)


def test_untrained_one_step_of_the_flow_returns_the_prior_as_its_autoencoder_codes_it(model):
    images, prior = clip()
    inputs, scale = model.prepare(images, INTRINSICS, prior)
    points, _, _ = model.autoencoder.decode_pointmaps(inputs.prior_latents)
    sampled = model.sample(images, INTRINSICS, prior)
    torch.testing.assert_close(sampled.points, points * scale.view(-1, 1, 1, 1, 1), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("steps", [1, 4])
def test_without_a_prior_there_are_points_and_depth_all_the_same(model, steps):
    images, _ = clip()
    sampled = model.sample(images, INTRINSICS, steps=steps, generator=torch.Generator().manual_seed(0))
    assert sampled.points.shape == (2, FRAMES, 3, *SIZE)
    assert sampled.log_scale.shape == sampled.valid.shape == (2, FRAMES, *SIZE)
    assert torch.isfinite(sampled.points).all()
    assert not model.refine(images, INTRINSICS, None).log_depth.any()


def test_a_prior_that_is_not_to_be_used_does_not_matter(model):
    images, prior = clip()
    none, _ = model.prepare(images, INTRINSICS, None)
    dropped, scale = model.prepare(images, INTRINSICS, prior, has_prior=torch.tensor([False, True]))
    kept, _ = model.prepare(images, INTRINSICS, prior)
    for field in dataclasses.fields(none):
        if getattr(none, field.name) is None:  # of networks without a prior
            continue
        first, second = (getattr(dropped, field.name)[i] for i in (0, 1))
        torch.testing.assert_close(first, getattr(none, field.name)[0], msg=field.name)
        torch.testing.assert_close(second, getattr(kept, field.name)[1], msg=field.name)
    assert scale[0] == 1


def test_the_scale_of_the_prior_does_not_matter(model):
    images, prior = clip()
    factor = 7.0
    poses = prior.poses.clone()
    poses[:, :, :3, 3] *= factor
    larger = dataclasses.replace(prior, log_depth=prior.log_depth + torch.log(torch.tensor(factor)), poses=poses)
    inputs, scale = model.prepare(images, INTRINSICS, prior)
    scaled, larger_scale = model.prepare(images, INTRINSICS, larger)
    torch.testing.assert_close(larger_scale, factor * scale)
    for name in ("prior_latents", "pixels", "matching", "geometry"):
        torch.testing.assert_close(getattr(scaled, name), getattr(inputs, name), rtol=1e-3, atol=2e-3, msg=name)


def test_saved_weights_are_loaded(model, image_autoencoder, tmp_path):
    torch.manual_seed(3)
    changed = PointmapNetwork(**{k: v for k, v in model.network.config.items() if not k.startswith("_")}).eval()
    torch.nn.init.normal_(changed.head.weight, std=0.02)
    trained = PointmapModel(changed, model.autoencoder, image_autoencoder)
    trained.save(tmp_path, dtype=torch.float32)
    loaded = load_pointmap_model(tmp_path, image_autoencoder)
    images, prior = clip()
    before, after = (m.refine(images, INTRINSICS, prior, passes=1) for m in (trained, loaded))
    assert torch.equal(before.log_depth, after.log_depth)
    assert not torch.equal(after.log_depth, prior.log_depth)
    (tmp_path / "vae" / "config.json").write_text('{"_class_name": "ImageAutoencoder"}')
    with pytest.raises(CheckpointError, match="a PointmapAutoencoder was expected"):
        load_pointmap_model(tmp_path, image_autoencoder)


def test_other_latents_are_an_error(model, tmp_path):
    model.save(tmp_path)
    other = ImageAutoencoder(widths=(8, 8, 8), encoder_blocks=(1, 1, 1), decoder_blocks=(1, 1, 1), z_dim=8)
    with pytest.raises(InputError, match="8 channels"):
        load_pointmap_model(tmp_path, other)


def test_bad_shapes_are_errors(model):
    images, prior = clip()
    with pytest.raises(InputError, match="multiples of 16"):
        model.refine(images[..., :40], INTRINSICS, prior)
    with pytest.raises(InputError, match="focal lengths"):
        model.refine(images, -INTRINSICS, prior)
    with pytest.raises(InputError, match="The prior has shape"):
        model.refine(images[:, :2], INTRINSICS, prior)
    with pytest.raises(InputError, match="at least 1"):
        model.refine(images, INTRINSICS, prior, passes=0)
    with pytest.raises(InputError, match="at least 1"):
        model.sample(images, INTRINSICS, prior, steps=0)
    with pytest.raises(InputError, match="anchor_weight of the prior"):
        dataclasses.replace(prior, anchor_weight=prior.anchor_weight[:, :1])


def test_codes_of_points_are_inverted():
    points = torch.linspace(-8, 8, 101)
    torch.testing.assert_close(decode_points(encode_points(points)), points, rtol=1e-3, atol=1e-4)


def test_relative_poses_begin_with_the_identity():
    poses = torch.linalg.matrix_exp(torch.randn(1, 2, 4, 4) * torch.tensor([[1.0], [1], [1], [0]]))
    poses = relative_poses(poses)
    torch.testing.assert_close(poses[:, 0], torch.eye(4)[None])


def test_anchors_move_depth_and_outliers_do_not():
    _, prior = clip()
    where = (torch.rand(prior.log_depth.shape, generator=torch.Generator().manual_seed(5)) < 0.05).float()
    wrong = torch.zeros_like(where)
    first = where.flatten(1).nonzero()[::25]
    wrong.flatten(1)[first[:, 0], first[:, 1]] = 1
    anchors = prior.log_depth + 0.5 + 2 * wrong
    moved = anchored_prior(prior.log_depth, prior.log_sigma, prior.poses, anchors, where)
    torch.testing.assert_close(moved.log_depth, prior.log_depth + 0.5, rtol=0, atol=2e-2)
    assert (moved.log_sigma < prior.log_sigma).all()
    assert not moved.anchor_residual[where == 0].any()
    alone = anchored_prior(prior.log_depth, prior.log_sigma, prior.poses, anchors, torch.zeros_like(where))
    torch.testing.assert_close(alone.log_depth, prior.log_depth)


def test_frames_match_best_at_the_true_depth():
    frames, shift, focal, depth = 6, 4, 40.0, 2.0
    texture = torch.rand(1, 1, *SIZE, generator=torch.Generator().manual_seed(2))
    texture = torch.nn.functional.interpolate(texture, size=(SIZE[0], 200), mode="bilinear")[0, 0] * 2 - 1
    images = torch.stack([texture[:, shift * f : shift * f + SIZE[1]] for f in range(frames)])
    images = images[None, :, None].expand(1, frames, 3, *SIZE)
    poses = torch.eye(4).repeat(1, frames, 1, 1)
    poses[0, :, 0, 3] = torch.arange(frames) * shift * depth / focal
    intrinsics = INTRINSICS[:1]
    for wrong in (0.0, -0.25):
        log_depth = torch.full((1, frames, *SIZE), depth).log() + wrong
        scores = sweep(images, log_depth, poses, intrinsics)[0, 2, : len(OFFSETS), 4:-4, 8:-8]
        best = scores.mean((1, 2)).argmax()
        assert OFFSETS[int(best)] == -wrong
        assert scores[best].mean() > 0.8
