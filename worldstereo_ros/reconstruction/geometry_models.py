"""Depth by a feed-forward network, from the user's own weights of π³ or VGGT, in the frame of the poses that are known.

Such networks give depth and poses of all photographs at once, in a frame and a unit of their own. A similarity on the
cameras, which are in both, takes them to ours. Their depth counts as *estimated*: a model made it.

Neither the networks' code nor their weights come with this package: install `pi3` (github.com/yyfz/Pi3) or `vggt`
(github.com/facebookresearch/vggt), and read the licences of the weights (π³ and the original VGGT: non-commercial).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
import torch

from worldstereo_ros.geometry.similarity import PoseErrors, Similarity, align_points, align_poses, pose_errors
from worldstereo_ros.reconstruction.features import RegistrationError
from worldstereo_ros.utils.errors import InputError, first_line

NAMES = ("pi3", "vggt")
PATCH_PX = 14
MAX_PIXELS = 255_000  # of each photograph, as π³ was used by AnyRecon
MIN_CONFIDENCE = 0.1
MAX_EDGE = 0.03  # relative depth range of 3x3 pixels; more is a depth edge, where networks leave flying points
MAX_ATE_PERCENT = 10.0  # between the network's poses and ours; more means that one of them is wrong


@dataclass(frozen=True)
class NetworkGeometry:
    """Output of a network for N photographs.

    Attributes:
        depth: (N, H, W) float32 along the optical axis, in the network's unit.
        confidence: (N, H, W) float32 in 0..1.
        world_from_camera: (N, 4, 4) float64, in the network's frame.
    """

    depth: np.ndarray
    confidence: np.ndarray
    world_from_camera: np.ndarray


class GeometryModel(Protocol):
    """A network that gives depth and poses of photographs."""

    def __call__(self, images: np.ndarray) -> NetworkGeometry:
        """Runs the network on (N, H, W, 3) uint8 RGB; H and W are multiples of `PATCH_PX`."""


def align_geometry(
    geometry: NetworkGeometry, world_from_camera: np.ndarray, anchors: int | None = None
) -> tuple[np.ndarray, PoseErrors]:
    """Depth of a network in the unit of poses that are known.

    Args:
        geometry: output for N photographs.
        world_from_camera: (N, 4, 4) poses of the same photographs.
        anchors: the first photographs, whose poses determine the similarity; None = all. Of imagined pictures the pose
            was asked for, not measured.

    Returns:
        ((N, H, W) float32 depth, 0 where the confidence is low or at a depth edge; errors of the network's poses after
        the similarity).

    Raises:
        InputError: the cameras do not determine a similarity, or the network's poses contradict those that are known.
    """
    errors = pose_errors(geometry.world_from_camera[:anchors], world_from_camera[:anchors])
    if not errors.ate_percent <= MAX_ATE_PERCENT:
        raise InputError(
            f"The poses of the network differ from those of the photographs by {errors.ate_percent:.0f} % of their "
            f"extent; at most {MAX_ATE_PERCENT:.0f} % were expected, so its depth is not used."
        )
    depth = geometry.depth * np.float32(errors.similarity.scale)
    kept = (geometry.confidence > MIN_CONFIDENCE) & np.isfinite(depth) & (depth > 0)
    kernel = np.ones((3, 3), np.uint8)
    for layer, keep in zip(depth, kept, strict=True):
        spread = cv2.dilate(layer, kernel) - cv2.erode(layer, kernel)
        keep &= spread <= MAX_EDGE * np.maximum(layer, 1e-12)
    return np.where(kept, depth, 0).astype(np.float32), errors


def similarity_of_cameras(source: np.ndarray, target: np.ndarray) -> Similarity:
    """Similarity between poses (N, 4, 4): by the centres if they determine it, else with the rotations.

    Raises:
        InputError: all cameras are at one place.
    """
    try:
        return align_points(source[:, :3, 3], target[:, :3, 3])
    except InputError:
        return align_poses(source, target)


def network_size(width: int, height: int) -> tuple[int, int]:
    """(width, height), multiples of `PATCH_PX`, of the same shape and at most `MAX_PIXELS`."""
    factor = min(1.0, (MAX_PIXELS / (width * height)) ** 0.5)
    return tuple(max(PATCH_PX, int(side * factor / PATCH_PX) * PATCH_PX) for side in (width, height))  # type: ignore[return-value]


def estimate_geometry(
    model: GeometryModel, images: Sequence[np.ndarray], poses: np.ndarray, *, anchors: int | None = None
) -> list[np.ndarray]:
    """Depth of photographs (H, W, 3) uint8 by a network, at the size of each and in the unit of the poses (N, 4, 4).

    All photographs are brought to the network size of the first. `anchors`: see `align_geometry`.

    Raises:
        InputError: see `align_geometry`.
    """
    size = network_size(images[0].shape[1], images[0].shape[0])
    stacked = np.stack([cv2.resize(image, size, interpolation=cv2.INTER_AREA) for image in images])
    depth, _ = align_geometry(model(stacked), poses)
    return [
        cv2.resize(layer, image.shape[1::-1], interpolation=cv2.INTER_NEAREST_EXACT)
        for layer, image in zip(depth, images, strict=True)
    ]


def parse_geometry(text: str) -> tuple[str, Path]:
    """Reads `pi3:PATH` or `vggt:PATH`. Raises InputError for something else, or a path that does not exist."""
    name, _, path = text.partition(":")
    if name not in NAMES or not path:
        raise InputError(f"The geometry '{text}' is unknown; sweep, fast, pi3:PATH or vggt:PATH was expected.")
    if not Path(path).is_file():
        raise InputError(f"The weights {path} of {name} do not exist; a .safetensors or .pt file was expected.")
    return name, Path(path)


def load_geometry_model(name: str, weights: Path, device: str = "cuda") -> GeometryModel:
    """Loads a network with the user's weights.

    Args:
        name: pi3 or vggt.
        weights: .safetensors file, or a file of torch that holds nothing but tensors.
        device: a CUDA device.

    Raises:
        RegistrationError: there is no GPU, the package is not installed, or the weights are not its.
    """
    if torch.device(device).type != "cuda" or not torch.cuda.is_available():
        raise RegistrationError(
            f"The geometry {name} needs a CUDA GPU (--device cuda); without one, leave out --geometry: the plane sweep "
            "runs on the CPU."
        )
    try:
        network = _network(name)
    except ImportError as error:
        source = {"pi3": "github.com/yyfz/Pi3", "vggt": "github.com/facebookresearch/vggt"}[name]
        raise RegistrationError(
            f"The geometry {name} needs the package '{name}', which is not installed ({first_line(error)}). Install it "
            f"from {source}, or leave out --geometry."
        ) from error
    try:
        network.load_state_dict(_read_weights(weights))
    except Exception as error:  # safetensors, torch and the networks raise errors of their own
        raise RegistrationError(f"{weights} does not hold the weights of {name}: {first_line(error)}.") from error
    network = network.to(device).eval()
    return _Pi3(network, device) if name == "pi3" else _Vggt(network, device)


def _network(name: str) -> Any:
    if name == "pi3":
        from pi3.models.pi3 import Pi3  # type: ignore[import-not-found]

        return Pi3()
    from vggt.models.vggt import VGGT  # type: ignore[import-not-found]

    return VGGT()


def _read_weights(path: Path) -> dict[str, torch.Tensor]:
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    state = torch.load(path, map_location="cpu", weights_only=True)
    inner = state.get("model", state)
    return inner if isinstance(inner, dict) else state


@dataclass(frozen=True)
class _Pi3:
    """π³: local points and camera poses of a set of photographs, without a reference view."""

    network: Any
    device: str

    def __call__(self, images: np.ndarray) -> NetworkGeometry:
        with torch.inference_mode():
            batch = torch.from_numpy(images).to(self.device).permute(0, 3, 1, 2)[None].float() / 255
            out = self.network(batch)
            depth = out["local_points"][0, ..., 2].float().cpu().numpy()
            confidence = torch.sigmoid(out["conf"][0, ..., 0].float()).cpu().numpy()
            poses = out["camera_poses"][0].double().cpu().numpy()
        return NetworkGeometry(depth, confidence, poses)


@dataclass(frozen=True)
class _Vggt:
    """VGGT: depth and camera encodings; the first photograph is its frame."""

    network: Any
    device: str

    def __call__(self, images: np.ndarray) -> NetworkGeometry:
        from vggt.utils.pose_enc import pose_encoding_to_extri_intri  # type: ignore[import-not-found]

        with torch.inference_mode():
            batch = torch.from_numpy(images).to(self.device).permute(0, 3, 1, 2).float() / 255
            out = self.network(batch)
            extrinsics, _ = pose_encoding_to_extri_intri(out["pose_enc"], batch.shape[-2:])
            depth = out["depth"][0, ..., 0].float().cpu().numpy()
            raw = out["depth_conf"][0].float().cpu().numpy()  # 1 + exp of the network's output
            camera_from_world = np.tile(np.eye(4), (len(images), 1, 1))
            camera_from_world[:, :3] = extrinsics[0].double().cpu().numpy()
        return NetworkGeometry(depth, 1 - 1 / np.maximum(raw, 1), np.linalg.inv(camera_from_world))
