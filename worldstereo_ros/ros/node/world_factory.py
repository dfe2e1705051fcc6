"""Builds the world model from the node's parameters. Imports no rclpy."""

from __future__ import annotations

import numpy as np

from worldstereo_ros.depth.estimators import DepthEstimator
from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.pipelines.auto import load_pipeline
from worldstereo_ros.pipelines.base import Pipeline
from worldstereo_ros.ros.node.backend import make_world
from worldstereo_ros.ros.node.folders import map_directory
from worldstereo_ros.ros.node.parameters import ConfigurationError, NodeParameters
from worldstereo_ros.world import WorldModel, warm_up


def effective_device(requested: str) -> str:
    """Resolves the device "auto": "cuda" if torch finds a CUDA device, else "cpu"."""
    if requested != "auto":
        return requested
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def build_world(parameters: NodeParameters) -> WorldModel:
    """Loads and warms up the pipeline and creates empty memories.

    Args:
        parameters: parameters of the node.

    Raises:
        ConfigurationError: a model, device or folder is not usable; the message says what to change.
    """
    from worldstereo_ros.memory.bank import ViewBank
    from worldstereo_ros.memory.cloud import CloudMemory

    device = effective_device(parameters.device)
    folder = map_directory(parameters)
    if folder.exists() and not folder.is_dir():
        raise ConfigurationError(f"map_directory is {folder}, which is not a folder.")
    try:
        pipeline = load_pipeline(
            parameters.model,
            device,
            variant=parameters.variant,
            dtype=parameters.dtype,
            control_backend=parameters.control_backend,
            fill=parameters.fill,
        )
        estimator = None
        if parameters.depth_source != "sensor":
            from worldstereo_ros.depth.estimators import load_depth_estimator

            estimator = load_depth_estimator(parameters.depth_model, device)
        # The bundled network is loaded by the first image that needs it, which on a robot with a depth camera is none.
        _warm_up(pipeline, device, estimator if estimator is None or parameters.depth_model else _flat_depth)
        cloud = CloudMemory(
            parameters.voxel_size,
            max_points=parameters.max_points,
            max_radius=parameters.max_radius or None,
            max_age=parameters.max_age or None,
        )
        bank = ViewBank(parameters.max_bank_views, max_bytes=parameters.max_bank_memory * 10**6)
        return make_world(parameters, pipeline, cloud, bank, depth_estimator=estimator, device=device)
    except (ValueError, RuntimeError, OSError) as error:
        raise ConfigurationError(str(error)) from error


def describe_depth_source(parameters: NodeParameters) -> str:
    """Describes in one sentence, for the log, where images without a depth image get their depth from."""
    if parameters.depth_source == "pointmaps":
        return "Depth of all images is estimated by point maps; such points are never on ~/map."
    if parameters.depth_source == "sensor" or parameters.depth_model == "none":
        return "Images without depth are rejected."
    bundled = parameters.depth_model in ("", "small")
    model = "the bundled depth network" if bundled else f"the depth model '{parameters.depth_model}'"
    until_depth = parameters.depth_source == "auto" and not parameters.depth_model
    until = " until the first depth image arrives" if until_depth else ""
    return f"Depth of images without a depth image is estimated by {model}{until}; such points are never on ~/map."


def _flat_depth(image: np.ndarray, camera: Camera) -> np.ndarray:
    """In place of a depth estimator (`depth.estimators.DepthEstimator`): a wall at 3 m."""
    return np.full(image.shape[:2], 3.0, np.float32)


def _warm_up(pipeline: Pipeline, device: str, estimator: DepthEstimator | None) -> None:
    """Warms a pipeline up with a single denoising step: further steps load nothing new."""
    steps = getattr(pipeline, "steps", None)
    if hasattr(pipeline, "steps"):
        pipeline.steps = 1
    try:
        warm_up(pipeline, device, depth_estimator=estimator)
    finally:
        if hasattr(pipeline, "steps"):
            pipeline.steps = steps
