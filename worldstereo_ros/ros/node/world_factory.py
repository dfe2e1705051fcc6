"""Makes the world model that the parameters describe. No rclpy here."""

from __future__ import annotations

from worldstereo_ros.pipelines.auto import load_pipeline
from worldstereo_ros.pipelines.base import Pipeline
from worldstereo_ros.ros.node.parameters import ConfigurationError, NodeParameters, map_directory
from worldstereo_ros.world import WorldModel, warm_up


def effective_device(requested: str) -> str:
    """Auto as what it means on this machine: cuda where there is one, else cpu."""
    if requested != "auto":
        return requested
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def build_world(settings: NodeParameters) -> WorldModel:
    """Loads the pipeline and makes empty memories.

    Raises:
        ConfigurationError: something the parameters name is not there; the message says what to change.
    """
    from worldstereo_ros.memory.bank import ViewBank
    from worldstereo_ros.memory.cloud import CloudMemory

    device = effective_device(settings.device)
    folder = map_directory(settings)
    if folder.exists() and not folder.is_dir():
        raise ConfigurationError(f"map_directory is {folder}, which is no folder.")
    try:
        pipeline = load_pipeline(
            settings.model,
            device,
            variant=settings.variant,
            dtype=settings.dtype,
            control_backend=settings.control_backend,
        )
        _warm_up(pipeline, device)
        estimator = None
        if settings.depth_source != "sensor":
            from worldstereo_ros.depth.estimators import choose_depth

            estimator = choose_depth(settings.depth_model, device)
        cloud = CloudMemory(
            settings.voxel_size,
            max_points=settings.max_points,
            max_radius=settings.max_radius or None,
            max_age=settings.max_age or None,
        )
        return WorldModel(pipeline, cloud, ViewBank(settings.max_bank_views), depth_estimator=estimator, device=device)
    except (ValueError, RuntimeError, OSError) as error:
        raise ConfigurationError(str(error)) from error


def depth_sentence(settings: NodeParameters) -> str:
    """Where images without depth get it, for the log."""
    if settings.depth_source == "sensor" or settings.depth_model == "none":
        return "Images without depth are refused."
    which = "the network that ships" if settings.depth_model in ("", "small") else f"'{settings.depth_model}'"
    until = " until the depth topic brings some" if settings.depth_source == "auto" and not settings.depth_model else ""
    return f"Images without depth get it from {which}{until}."


def _warm_up(pipeline: Pipeline, device: str) -> None:
    """Warms up, with a single step where a pipeline takes many: more of the same load nothing more."""
    steps = getattr(pipeline, "steps", None)
    if hasattr(pipeline, "steps"):
        pipeline.steps = 1
    try:
        warm_up(pipeline, device)
    finally:
        if hasattr(pipeline, "steps"):
            pipeline.steps = steps
