"""The point-map network: refines the geometric prior, or gives point maps without one (the published form)."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from worldstereo_ros.depth.familiarity import laplace_confidence
from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.geometry.poses import invert_pose
from worldstereo_ros.imaging.resizing import resize_image
from worldstereo_ros.pipelines.pointmaps.dense_depth import WORK_PIXELS, work_size
from worldstereo_ros.pipelines.pointmaps.estimate import as_frames, assumed_camera
from worldstereo_ros.pipelines.pointmaps.focal import estimate_focal
from worldstereo_ros.pipelines.pointmaps.types import GUESS, Pointmaps
from worldstereo_ros.pipelines.pointmaps.visual_odometry import solve_pose
from worldstereo_ros.utils.errors import InputError
from worldstereo_ros.utils.single_thread import single_thread
from worldstereo_ros.weights.bundled import DEFAULT_MODEL, bundled_folder

if TYPE_CHECKING:
    from worldstereo_ros.models.pointmaps.model import PointmapModel
    from worldstereo_ros.models.pointmaps.published import PublishedPointmaps
    from worldstereo_ros.models.pointmaps.refiner import RefinerModel
    from worldstereo_ros.pipelines.pointmaps.dense_depth import Refiner

    Model = PointmapModel | PublishedPointmaps | RefinerModel

POINTMAPS_FOLDER = "pointmaps"
WITHOUT_PRIOR_FOLDER = "pointmaps-no-prior"
PASSES = 2
GRID_PX = 4  # of the pixels that poses are solved from
MIN_SURE_SHARE = 0.5  # of them, the surest
POSE_TOLERANCE_PX = 2.0  # at the working size, of about 128 pixels


def model_folder(*, prior: bool = True) -> Path:
    """Where the bundled point-map network is: the one that refines a prior, or the one that works without."""
    return bundled_folder(DEFAULT_MODEL) / "base" / (POINTMAPS_FOLDER if prior else WITHOUT_PRIOR_FOLDER)


def is_available(folder: Path | None = None, *, prior: bool = True) -> bool:
    """Whether the weights of the point-map network are there; arguments of `load_model`."""
    return ((folder or model_folder(prior=prior)) / "transformer" / "config.json").is_file()


def load_model(folder: Path | None = None, device: Any = "cpu", *, prior: bool = True) -> Model:
    """Loads the point-map network.

    Args:
        folder: folder of `worldstereo train pointmaps`, of any of its networks; None for the bundled one.
        device: torch device.
        prior: of the bundled ones, that which refines a prior; else that which works without.

    Raises:
        InputError: there are no weights.
        CheckpointError: they are damaged.
    """
    import torch

    folder = folder or model_folder(prior=prior)
    if not is_available(folder):
        raise InputError(
            f"There is no point-map network in {folder}. Use --method map, which needs none, or train one: worldstereo "
            f"train pointmaps{'' if prior else ' --network flow --prior none'}."
        )
    from worldstereo_ros.models.checkpoints.loading import load_image_autoencoder
    from worldstereo_ros.models.checkpoints.weights import read_json
    from worldstereo_ros.models.pointmaps.model import load_pointmap_model

    config = read_json(folder / "transformer" / "config.json")
    kind = config.get("_class_name")
    if kind == "PointmapRefiner":
        from worldstereo_ros.models.pointmaps.refiner import load_refiner_model

        return load_refiner_model(folder, device)
    if kind == "STDiT3":
        from worldstereo_ros.models.pointmaps.published import PublishedPointmaps

        return PublishedPointmaps.from_pretrained(folder / "transformer", folder / "vae", device=device)
    from worldstereo_ros.models.depth_network import load_depth_network

    base = bundled_folder(DEFAULT_MODEL) / "base"
    images = load_image_autoencoder(base / "vae", torch.device(device), torch.float32)
    depth = load_depth_network(base / "depth", device) if config.get("depth_channels") else None
    return load_pointmap_model(folder, images, device, depth)


def load_refiner(folder: Path | None = None, device: Any = "cpu") -> Refiner:
    """The refiner of the method small, see `load_model`."""
    return refiner_of(load_model(folder, device))


def refiner_of(model: Model) -> Refiner:
    """The refiner of a model."""
    return partial(_refine, model)


def _refine(model: Model, images: Any, intrinsics: Any, prior: Any) -> Any:
    device = model.device
    passes = getattr(model, "passes", PASSES)
    with _threads(model):
        return model.refine(
            images.to(device), intrinsics.to(device), None if prior is None else prior.to(device), passes=passes
        )


def _threads(model: Model) -> AbstractContextManager[None]:
    """One thread for small networks; those of the published size, which say their `work_pixels`, take all."""
    return nullcontext() if hasattr(model, "work_pixels") else single_thread()


def works_without_prior(model: Model) -> bool:
    """Whether a network samples point maps by itself; one that only refines a prior does not."""
    return hasattr(model, "sample")


def check_works_without_prior(model: Model) -> None:
    """Raises InputError if a network only refines a prior."""
    if not works_without_prior(model):
        raise InputError(
            "This point-map network refines a prior and gives nothing without one: use --prior tracks, or --weights "
            "with a network of `worldstereo train pointmaps --network flow --prior none`."
        )


def estimate_without_prior(
    frames: Sequence[np.ndarray], camera: Camera | None, model: Model, *, steps: int = 1
) -> Pointmaps:
    """Point maps by the network alone, as Sora3R does it: no tracks and no depth network; poses by PnP-RANSAC.

    Args:
        frames: F images (H, W, 3) uint8 RGB of one window.
        camera: intrinsics; None: the focal length follows from the first point map (Weiszfeld).
        model: the network.
        steps: steps of the sampler.

    Returns:
        Point maps at the working size; their unit is their mean distance, and `metric` is False. Frames without a
        consistent pose are not `frame_ok`.

    Raises:
        InputError: the frames are no such, or the network only refines a prior.
    """
    import torch

    check_works_without_prior(model)
    images = np.stack(as_frames(frames))
    height, width = images.shape[1:3]
    rows, columns = work_size(height, width, getattr(model, "work_pixels", WORK_PIXELS))
    given = assumed_camera(height, width) if camera is None else camera
    reduced = given.resized(columns, rows)
    small = np.stack([resize_image(image, columns, rows) for image in images])
    clip = torch.from_numpy(small.transpose(0, 3, 1, 2).astype(np.float32) / 127.5 - 1)[None].to(model.device)
    intrinsics = torch.tensor([[reduced.fx, reduced.fy, reduced.cx, reduced.cy]], dtype=torch.float32)
    generator = torch.Generator(model.device).manual_seed(0)
    sampler = cast("PointmapModel", model)
    with _threads(model):
        world = sampler.sample(clip, intrinsics.to(model.device), None, steps=steps, generator=generator)
    points = world.points[0].float().cpu().numpy().transpose(0, 2, 3, 1)
    sigma = np.exp(world.log_scale[0].float().cpu().numpy())
    valid = (world.valid[0].float().cpu().numpy() > 0) & np.isfinite(points).all(axis=3)
    confidence = np.where(valid, laplace_confidence(sigma), 0).astype(np.float32)
    messages = ["Lengths are a guess of the network (metric: false)."]
    if camera is None:
        focal = estimate_focal(points[0], confidence[0])
        reduced = Camera(columns, rows, focal, focal, reduced.cx, reduced.cy)
        messages.append("The focal length follows from the first point map.")
    poses, found = poses_of(points, confidence, reduced)
    if not found.all():
        messages.append(f"The pose of {int((~found).sum())} of {len(found)} frames was not found.")
    covariance = np.zeros((len(found), 6, 6))
    covariance[~found] = np.diag([np.inf] * 6)
    valid &= found[:, None, None]
    points = np.where(valid[..., None], points, np.float32(np.nan)).astype(np.float32)
    return Pointmaps(
        points, confidence * valid, valid, np.zeros_like(valid), poses, reduced, GUESS, found,
        np.zeros(len(found), np.int64), covariance, tuple(messages), "small-no-prior",
    )  # fmt: skip


def poses_of(points: np.ndarray, confidence: np.ndarray, camera: Camera) -> tuple[np.ndarray, np.ndarray]:
    """Poses that world point maps imply, by PnP-RANSAC on a grid of the surest pixels.

    Args:
        points: (F, H, W, 3) in the axes of the first camera.
        confidence: (F, H, W) 0..1, 0 = not to be used.
        camera: intrinsics.

    Returns:
        (F, 4, 4) world_from_camera relative to the first, and (F,) bool: found.
    """
    frames = len(points)
    poses, found = np.tile(np.eye(4), (frames, 1, 1)), np.zeros(frames, bool)
    rows, columns = np.meshgrid(
        np.arange(GRID_PX // 2, camera.height, GRID_PX), np.arange(GRID_PX // 2, camera.width, GRID_PX), indexing="ij"
    )
    pixels = np.stack([columns.ravel(), rows.ravel()], axis=1).astype(np.float64)
    for f in range(frames):
        sure = confidence[f, rows, columns].ravel()
        usable = (sure > 0) & (sure >= np.quantile(sure, 1 - MIN_SURE_SHARE))
        there = points[f, rows, columns].reshape(-1, 3).astype(np.float64)
        result = solve_pose(there[usable], pixels[usable], camera, POSE_TOLERANCE_PX)
        if result is not None and result[1].mean() > 0.3:
            poses[f], found[f] = invert_pose(result[0]), True
        elif f:
            poses[f] = poses[f - 1]
    return invert_pose(poses[0]) @ poses, found
