"""The refiner of priors: what it is untrained, its files, and what it refuses."""

import dataclasses

import numpy as np
import pytest
import torch

from worldstereo_ros.models.checkpoints.weights import CheckpointError
from worldstereo_ros.models.depth_network import DepthNetwork
from worldstereo_ros.models.pointmaps.fusion import fuse_depth
from worldstereo_ros.models.pointmaps.model import save_part
from worldstereo_ros.models.pointmaps.refiner import (
    EXTRA_CHANNELS,
    HINT_CHANNELS,
    NETWORK_FOLDER,
    PointmapRefiner,
    RefinerModel,
    between_anchors,
    extra_inputs,
    load_refiner_model,
    match_hints,
)
from worldstereo_ros.models.pointmaps.sweep import DISTANCES, OFFSETS, SWEEP_CHANNELS
from worldstereo_ros.models.pointmaps.types import PointmapPrediction, PointmapPrior
from worldstereo_ros.utils.errors import InputError

pytestmark = pytest.mark.usefixtures("one_thread")
B, F, H, W = 1, 5, 32, 48
SMALL = {"widths": (8, 12, 16), "blocks": (1, 1), "layers": 1, "heads": 2}


@pytest.fixture(scope="module")
def clip():
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(B, F, 3, H, W, generator=generator) * 2 - 1
    poses = torch.eye(4).repeat(B, F, 1, 1)
    poses[0, :, 0, 3] = 0.05 * torch.arange(F)
    log_depth = 0.2 * torch.randn(B, F, H, W, generator=generator) + 1
    blank = torch.zeros(B, F, H, W)
    return images, torch.tensor([[40.0, 40.0, 23.5, 15.5]]), PointmapPrior(log_depth, blank - 2, poses, blank, blank)


@pytest.fixture
def network():
    torch.manual_seed(0)
    return PointmapRefiner(**SMALL, width=8)


def test_untrained_it_returns_the_fused_prior(clip, network):
    images, intrinsics, prior = clip
    for passes in (1, 2):
        found = RefinerModel(network).refine(images, intrinsics, prior, passes=passes)
        fused = prior.log_depth
        for _ in range(passes):
            fused = fuse_depth(fused, prior.log_sigma, prior.poses, intrinsics)
        torch.testing.assert_close(found.log_depth, fused)
        assert not found.knows_moving
        torch.testing.assert_close(found.log_scale, prior.log_sigma)
        assert (found.dynamic < 0).all()


def test_it_starts_from_the_features_of_the_depth_network(clip):
    torch.manual_seed(1)
    depth = DepthNetwork(**SMALL)
    torch.nn.init.normal_(depth.attention[0].out.weight)
    refiner = PointmapRefiner.from_depth_network(depth, width=8)
    images, centre = clip[0][0], torch.full((F, 2), 20.0)
    torch.testing.assert_close(refiner.depth.features(images, centre), depth.features(images, centre))
    with torch.no_grad():
        refiner.depth.stem.weight.zero_()
    assert depth.stem.weight.abs().sum() > 0  # a copy


def test_its_inputs_do_not_depend_on_the_scale_of_the_clip(clip):
    _, _, prior = clip
    matching = torch.rand(B, F, SWEEP_CHANNELS, H // 2, W // 2)
    inputs = extra_inputs(prior, matching)
    assert inputs.shape == (B, F, EXTRA_CHANNELS, H // 4, W // 4)
    larger = PointmapPrior(
        prior.log_depth + np.log(7.0), prior.log_sigma, prior.poses, prior.anchor_residual, prior.anchor_weight
    )
    torch.testing.assert_close(extra_inputs(larger, matching), inputs, rtol=1e-4, atol=1e-5)


def test_hints_say_which_offset_matches():
    which = 8
    matching = torch.zeros(1, 1, SWEEP_CHANNELS, 2, 2)
    for part in range(len(DISTANCES) + 1):
        matching[:, :, part * len(OFFSETS) + which] = 1.0
    hints = match_hints(matching)
    assert hints.shape == (1, 1, HINT_CHANNELS, 2, 2)
    torch.testing.assert_close(hints[0, 0, 1], torch.full((2, 2), OFFSETS[which]), rtol=1e-2, atol=1e-2)
    flat = match_hints(torch.zeros(1, 1, SWEEP_CHANNELS, 2, 2))
    torch.testing.assert_close(flat, torch.zeros_like(flat), rtol=0, atol=1e-6)


def test_files_give_the_same_network(tmp_path, clip, network):
    torch.nn.init.normal_(network.head.weight, std=0.02)
    save_part(tmp_path / NETWORK_FOLDER, network, network.state_dict(), torch.float32)
    loaded = load_refiner_model(tmp_path)
    expected = RefinerModel(network).refine(*clip)
    assert (expected.log_depth - clip[2].log_depth).abs().max() > 0.01
    torch.testing.assert_close(loaded.refine(*clip).log_depth, expected.log_depth)
    file = tmp_path / NETWORK_FOLDER / "config.json"
    file.write_text(file.read_text().replace("PointmapRefiner", "DepthNetwork"))
    with pytest.raises(CheckpointError, match="a PointmapRefiner was expected"):
        load_refiner_model(tmp_path)


def test_where_anchors_are_many_the_prior_stays(clip):
    _, _, prior = clip
    weight = torch.zeros_like(prior.anchor_weight)
    weight[..., : W // 2] = 1.0
    anchored = dataclasses.replace(prior, anchor_weight=weight)
    changed = PointmapPrediction(prior.log_depth + 1, prior.log_sigma + 1, weight, weight)
    found = between_anchors(changed, anchored)
    change = found.log_depth - prior.log_depth
    assert change[..., :8].max() < 0.1
    assert change[..., -4:].min() > 0.8
    assert (found.log_scale - prior.log_sigma)[..., :8].max() < 0.3
    torch.testing.assert_close(between_anchors(changed, prior).log_depth, changed.log_depth)


def test_fusion_averages_what_frames_say_of_one_surface():
    """A wall in front of a sliding camera, whose depth is wrong in each frame by another factor."""
    generator = torch.Generator().manual_seed(0)
    poses = torch.eye(4).repeat(1, 17, 1, 1)
    poses[0, :, 0, 3] = 0.02 * torch.arange(17)
    intrinsics = torch.tensor([[40.0, 40.0, 23.5, 15.5]])
    truth = torch.full((1, 17, H, W), 2.0).log()
    factors = 0.2 * torch.randn(1, 17, 1, 1, generator=generator)
    fused = fuse_depth(truth + factors, torch.zeros_like(truth), poses, intrinsics)
    assert (fused - truth).abs().mean() < 0.5 * factors.abs().mean()
    # What is exact stays, and frames that are sure outweigh those that are not.
    torch.testing.assert_close(fuse_depth(truth, truth * 0, poses, intrinsics), truth, rtol=0, atol=1e-4)
    sure = torch.zeros_like(truth)
    wrong = truth.clone()
    wrong[:, ::4] += 0.3
    sure[:, ::4] = 2.0
    seen = slice(8, -8)  # by several frames
    assert (fuse_depth(wrong, sure, poses, intrinsics) - truth)[..., seen].abs().max() < 0.05


def test_fusion_leaves_what_no_other_frame_sees_and_what_differs_by_far():
    poses = torch.eye(4).repeat(1, 5, 1, 1)
    poses[0, :, 2, 3] = torch.tensor([0.0, 9.0, 18.0, 27.0, 36.0])  # past all of it at once
    log_depth = 0.1 * torch.randn(1, 5, H, W, generator=torch.Generator().manual_seed(0))
    intrinsics = torch.tensor([[40.0, 40.0, 23.5, 15.5]])
    sigma = torch.zeros_like(log_depth)
    torch.testing.assert_close(fuse_depth(log_depth, sigma, poses, intrinsics), log_depth)
    still = torch.eye(4).repeat(1, 5, 1, 1)
    log_depth = torch.arange(5.0).view(1, 5, 1, 1).expand(1, 5, H, W)  # each frame another thing
    torch.testing.assert_close(fuse_depth(log_depth, sigma, still, intrinsics), log_depth)


def test_it_needs_a_prior_and_a_pass(clip, network):
    images, intrinsics, prior = clip
    with pytest.raises(InputError, match="there is none"):
        RefinerModel(network).refine(images, intrinsics, None)
    with pytest.raises(InputError, match="at least 1"):
        RefinerModel(network).refine(images, intrinsics, prior, passes=0)
