"""Loads the model of a server, which its robots share, and makes the service."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from worldstereo_ros.serving.limits import MemorySettings, ServingLimits

if TYPE_CHECKING:
    from worldstereo_ros.serving.service import RobotService
    from worldstereo_ros.world import WorldModel


@dataclass(frozen=True)
class ModelSettings:
    """What a server loads; see `pipelines.auto.load_pipeline` and `depth.estimators.load_depth_estimator`.

    Attributes:
        model, device, variant, dtype, fill: of the pipeline.
        depth_model: estimates depth of observations without; "": the bundled network, loaded when one comes; "none":
            they are refused.
    """

    model: str = "small"
    device: str = "cpu"
    variant: str = ""
    dtype: str = "auto"
    fill: str = "auto"
    depth_model: str = ""


def load_service(chosen: ModelSettings, limits: ServingLimits) -> RobotService:
    """Loads and warms up the model, and makes a service without any robot.

    Raises:
        InputError, CheckpointError: a model or the device is not usable.
    """
    from worldstereo_ros.depth.estimators import NONE, load_depth_estimator
    from worldstereo_ros.memory.bank import ViewBank
    from worldstereo_ros.memory.cloud import CloudMemory
    from worldstereo_ros.pipelines.auto import load_pipeline
    from worldstereo_ros.serving.service import RobotService
    from worldstereo_ros.world import WorldModel, warm_up

    pipeline = load_pipeline(chosen.model, chosen.device, variant=chosen.variant, dtype=chosen.dtype, fill=chosen.fill)
    estimator = None if chosen.depth_model == NONE else load_depth_estimator(chosen.depth_model, chosen.device)
    warm_up(pipeline, chosen.device, depth_estimator=estimator if chosen.depth_model else None)

    def make_world(settings: MemorySettings) -> WorldModel:
        cloud = CloudMemory(
            settings.voxel_size,
            max_points=settings.max_points,
            max_radius=settings.max_radius,
            max_age=settings.max_age,
        )
        bank = ViewBank(settings.max_bank_views, max_bytes=settings.max_bank_bytes)
        return WorldModel(pipeline, cloud, bank, depth_estimator=estimator, device=chosen.device)

    return RobotService(make_world, limits, model=pipeline.name, clip_length=pipeline.clip_length)
