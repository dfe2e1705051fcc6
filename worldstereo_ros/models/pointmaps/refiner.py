"""The refiner: changes the log depth of a geometric prior by what images and their matching say; frames are then fused.

It is the depth network, fine-tuned, with another head and more to read: the prior, its anchors, and how well other
frames match around it (`sweep`). A monocular network knows what surfaces look like, and matching knows where they are;
starting from trained features takes minutes on a CPU, where the transformer of `network` takes a GPU. Untrained, the
result is the prior. There is no flow of latents: `PointmapNetwork` is the published form.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import nn
from torch.nn import functional

from worldstereo_ros.models.blocks import ResidualBlock, zero_module
from worldstereo_ros.models.checkpoints.bounds import check_numbers
from worldstereo_ros.models.checkpoints.loading import BASE_STEM, build_on_meta
from worldstereo_ros.models.checkpoints.parameters import load_weights
from worldstereo_ros.models.checkpoints.weights import CheckpointError, open_weights, read_json
from worldstereo_ros.models.depth_network import PATCH_PX, DepthNetwork
from worldstereo_ros.models.pointmaps.fusion import fuse_depth
from worldstereo_ros.models.pointmaps.prior import spread_residuals
from worldstereo_ros.models.pointmaps.sweep import DISTANCES, OFFSETS, SCALE, SWEEP_CHANNELS, sweep
from worldstereo_ros.models.pointmaps.types import PointmapPrediction, PointmapPrior, check_clip
from worldstereo_ros.utils.errors import InputError

NETWORK_FOLDER = "transformer"  # where `PointmapModel` has its network, too
PRIOR_CHANNELS = 4  # log depth, log sigma, residual and weight of anchors
HINT_CHANNELS = 4
HINT_SHARPNESS = (6.0, 20.0)  # of the softmax of correlations over offsets
EXTRA_CHANNELS = (SWEEP_CHANNELS + HINT_CHANNELS) * (PATCH_PX // SCALE) ** 2 + PRIOR_CHANNELS * PATCH_PX**2
OUTPUTS = 4  # residual, change of the log sigma, logits of dynamic and valid
MAX_RESIDUAL = 3.0
MIN_LOG_SCALE, MAX_LOG_SCALE = -5.0, 1.5
FIRST_DYNAMIC, FIRST_VALID = -3.0, 3.0
TRUSTED_ANCHORS = (
    5.0  # near a pixel, with which prior and prediction count the same; of 5, 10, 20 the best in validation
)


class PointmapRefiner(ModelMixin, ConfigMixin):
    """Predicts maps of frames from images, a prior and its matching.

    Args:
        widths, blocks, layers, heads: of the depth network that it starts from.
        width: channels of the branch that reads matching and prior.
    """

    @register_to_config
    def __init__(
        self,
        widths: tuple[int, ...] = (48, 96, 192),
        blocks: tuple[int, ...] = (2, 2),
        layers: int = 4,
        heads: int = 6,
        width: int = 64,
    ) -> None:
        super().__init__()
        self.depth = DepthNetwork(widths=widths, blocks=blocks, layers=layers, heads=heads)
        self.depth.head = nn.Identity()
        quarter = widths[0]
        self.extra = nn.Sequential(
            nn.Conv2d(EXTRA_CHANNELS, width, 3, padding=1), nn.GroupNorm(1, width), ResidualBlock(width),
            ResidualBlock(width),
        )  # fmt: skip
        self.to_depth = nn.Conv2d(width, quarter, 3, padding=1)
        self.join = nn.Conv2d(quarter + width, width, 3, padding=1)
        self.out = nn.Sequential(ResidualBlock(width), ResidualBlock(width))
        self.head = nn.Conv2d(width, OUTPUTS * PATCH_PX**2, 3, padding=1)
        zero_module(self.to_depth)
        zero_module(self.head)

    @classmethod
    def from_depth_network(cls, network: DepthNetwork, width: int = 64) -> PointmapRefiner:
        """A refiner with the features of a trained depth network; it returns the prior until trained."""
        config = network.config
        refiner = cls(tuple(config.widths), tuple(config.blocks), config.layers, config.heads, width)
        kept = {k: v.clone() for k, v in network.state_dict().items() if not k.startswith("head.")}
        refiner.depth.load_state_dict(kept)
        return refiner

    def forward(self, images: torch.Tensor, principal_point: torch.Tensor, extra: torch.Tensor) -> torch.Tensor:
        """Predicts changes.

        Args:
            images: (N, 3, H, W) in [-1, 1]; H and W multiples of 16.
            principal_point: (N, 2) x and y in pixels.
            extra: (N, EXTRA_CHANNELS, H / 4, W / 4), see `extra_inputs`.

        Returns:
            (N, OUTPUTS, H, W) float32.
        """
        side = self.extra(extra.to(images.dtype))
        quarter = self.depth.features(images, principal_point, self.to_depth(functional.silu(side)))
        joined = self.out(self.join(functional.silu(torch.cat((quarter, side), dim=1))))
        return functional.pixel_shuffle(self.head(functional.silu(joined)), PATCH_PX).float()

    def predict(
        self, images: torch.Tensor, intrinsics: torch.Tensor, prior: PointmapPrior, matching: torch.Tensor
    ) -> PointmapPrediction:
        """Maps of clips.

        Args:
            images: (b, F, 3, H, W) in [-1, 1].
            intrinsics: (b, 4).
            prior: of these frames.
            matching: (b, F, SWEEP_CHANNELS, H / 2, W / 2), see `sweep`.
        """
        b, f = images.shape[:2]
        extra = extra_inputs(prior, matching)
        centre = intrinsics[:, None, 2:].expand(b, f, 2).flatten(0, 1)
        maps = self(images.flatten(0, 1), centre, extra.flatten(0, 1)).unflatten(0, (b, f))
        return PointmapPrediction(
            log_depth=prior.log_depth + maps[:, :, 0].clamp(-MAX_RESIDUAL, MAX_RESIDUAL),
            log_scale=(prior.log_sigma + maps[:, :, 1]).clamp(MIN_LOG_SCALE, MAX_LOG_SCALE),
            dynamic=maps[:, :, 2] + FIRST_DYNAMIC,
            valid=maps[:, :, 3] + FIRST_VALID,
        )


def extra_inputs(prior: PointmapPrior, matching: torch.Tensor) -> torch.Tensor:
    """What the refiner reads beside images: (b, F, EXTRA_CHANNELS, H / 4, W / 4); the clip's scale is divided out.

    Args:
        prior: the prior.
        matching: (b, F, SWEEP_CHANNELS, H / 2, W / 2), see `sweep`.
    """
    b, f = matching.shape[:2]
    log_depth = prior.log_depth - prior.log_depth.mean((1, 2, 3), keepdim=True)
    maps = torch.stack((log_depth, prior.log_sigma, prior.anchor_residual, prior.anchor_weight), dim=2)
    coarse = torch.cat((matching, match_hints(matching)), dim=2).flatten(0, 1)
    parts = (
        functional.pixel_unshuffle(coarse, PATCH_PX // SCALE),
        functional.pixel_unshuffle(maps.flatten(0, 1), PATCH_PX),
    )
    return torch.cat(parts, dim=1).unflatten(0, (b, f))


def match_hints(matching: torch.Tensor) -> torch.Tensor:
    """(b, F, HINT_CHANNELS, h, w) of a sweep: likely offsets at two sharpnesses, the best correlation, its lead."""
    count = len(OFFSETS)
    near = matching[:, :, : count * len(DISTANCES)].unflatten(2, (len(DISTANCES), count)).mean(2)
    score = near + matching[:, :, count * len(DISTANCES) : count * (len(DISTANCES) + 1)]
    offsets = matching.new_tensor(OFFSETS).view(1, 1, -1, 1, 1)
    likely = [((sharp * score).softmax(2) * offsets).sum(2) for sharp in HINT_SHARPNESS]
    best = score.amax(2)
    return torch.stack((*likely, 0.5 * best, best - score.mean(2)), dim=2)


def between_anchors(prediction: PointmapPrediction, prior: PointmapPrior) -> PointmapPrediction:
    """What is predicted, drawn back to the prior where anchors are many: they are measured, and it only guesses."""
    _, count = spread_residuals(prior.anchor_residual, prior.anchor_weight)
    share = 1 / (1 + count / TRUSTED_ANCHORS)
    log_depth = torch.lerp(prior.log_depth, prediction.log_depth, share)
    scale = torch.lerp(prior.log_sigma.exp(), prediction.log_scale.exp(), share)
    return replace(prediction, log_depth=log_depth, log_scale=scale.log())


def finished(prediction: PointmapPrediction, prior: PointmapPrior, intrinsics: torch.Tensor) -> PointmapPrediction:
    """What the network predicts of each frame, as it is used: with the prior at anchors, and fused over the frames."""
    prediction = between_anchors(prediction, prior)
    log_depth = fuse_depth(prediction.log_depth, prediction.log_scale, prior.poses, intrinsics)
    return replace(prediction, log_depth=log_depth, knows_moving=False)


@dataclass(frozen=True)
class RefinerModel:
    """Refines priors; what a loaded `PointmapRefiner` is used through.

    Attributes:
        network: the network.
        passes: see `refine`; more made no difference on validation worlds.
    """

    network: PointmapRefiner
    passes: int = 1

    @property
    def device(self) -> torch.device:
        """Device of the network."""
        return self.network.head.weight.device

    @torch.no_grad()
    def refine(
        self, images: torch.Tensor, intrinsics: torch.Tensor, prior: PointmapPrior | None, *, passes: int = 1
    ) -> PointmapPrediction:
        """Refines a prior.

        Args:
            images: (b, F, 3, H, W) in [-1, 1]; H and W multiples of 16; trained with 17 frames of about 12 000 pixels.
            intrinsics: (b, 4).
            prior: the prior.
            passes: how often; later passes match frames around the depth of the one before.

        Returns:
            Depth in the scale of the prior, fused over the frames. The network hardly finds what moves, so
            `knows_moving` is False.

        Raises:
            InputError: there is no prior, a shape is another, or `passes` is below 1.
        """
        check_clip(images, intrinsics, prior)
        if prior is None:
            raise InputError("This point-map network refines a prior, and there is none; use --prior tracks.")
        if passes < 1:
            raise InputError(f"passes is {passes}; at least 1 was expected.")
        for _ in range(passes):
            matching = sweep(images, prior.log_depth, prior.poses, intrinsics)
            prediction = self.network.predict(images, intrinsics, prior, matching)
            prediction = finished(prediction, prior, intrinsics)
            prior = prior.refined(prediction)
        return prediction


def load_refiner_model(folder: Path, device: torch.device | str = "cpu") -> RefinerModel:
    """Loads a refiner from a folder with `NETWORK_FOLDER`, in evaluation mode, without gradients, in float32.

    Raises:
        CheckpointError: a file is missing or damaged, or the weights do not fit the configuration.
    """
    folder = folder / NETWORK_FOLDER
    file = folder / "config.json"
    config: dict[str, Any] = read_json(file)
    if config.get("_class_name") != PointmapRefiner.__name__:
        raise CheckpointError(f"{folder} has a {config.get('_class_name')}; a {PointmapRefiner.__name__} was expected.")
    check_numbers(file, config)
    model = build_on_meta(PointmapRefiner, file, config, "point-map refiner")
    load_weights(model, open_weights(folder, BASE_STEM), torch.device(device), torch.float32)
    return RefinerModel(model.requires_grad_(False).eval())
