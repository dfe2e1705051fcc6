"""A server of robots in this process: a small model, its HTTP interface on a free port, and what robots see."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from helpers.box_room import observe, turned
from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.geometry.views import View
from worldstereo_ros.memory.bank import ViewBank
from worldstereo_ros.memory.cloud import CloudMemory
from worldstereo_ros.pipelines.geometric.pipeline import GeometricPipeline
from worldstereo_ros.serving.limits import MemorySettings, ServingLimits
from worldstereo_ros.serving.service import RobotService
from worldstereo_ros.world import WorldModel

TOKEN = "a-token-of-the-tests"
CAMERA = Camera(48, 36, 31.3, 31.3, 23.5, 17.5)
SETTINGS = MemorySettings(voxel_size=0.05, max_points=20_000, max_bank_views=16)
LIMITS = ServingLimits(max_points=50_000, max_image_pixels=100_000, max_views=8, max_body_bytes=20_000_000)


def memories(settings: MemorySettings = SETTINGS) -> tuple[CloudMemory, ViewBank]:
    cloud = CloudMemory(
        settings.voxel_size,
        max_points=settings.max_points,
        max_radius=settings.max_radius,
        max_age=settings.max_age,
    )
    return cloud, ViewBank(settings.max_bank_views, max_bytes=settings.max_bank_bytes)


def make_world(settings: MemorySettings = SETTINGS) -> WorldModel:
    return WorldModel(GeometricPipeline(), *memories(settings))


def make_service(limits: ServingLimits = LIMITS) -> RobotService:
    pipeline = GeometricPipeline()
    return RobotService(make_world, limits, model=pipeline.name, clip_length=pipeline.clip_length)


def sights(count: int, *, start: float = 0.0, tiles: float = 40.0) -> list[View]:
    """What a robot sees that turns by 25 degrees between two views."""
    views = [observe(turned(start + 25.0 * i), camera=CAMERA, tiles=tiles, stamp_ns=1 + i) for i in range(count)]
    return [dataclasses.replace(view, depth=_millimetres(view.depth)) for view in views]


def _millimetres(depth: np.ndarray) -> np.ndarray:
    return np.round(depth, 3).astype(np.float32)


def path(count: int, degrees: float = 60.0) -> np.ndarray:
    """(N, 4, 4) poses that turn into what was not seen."""
    return np.stack([turned(float(angle)) for angle in np.linspace(0, degrees, count)])


def differences(one: View, other: View) -> list[str]:
    """Names of the fields in which two views differ by a bit."""
    names = [field.name for field in dataclasses.fields(one)]
    assert names == [field.name for field in dataclasses.fields(other)]
    return [name for name in names if not _same(getattr(one, name), getattr(other, name))]


def _same(a: object, b: object) -> bool:
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    return type(a) is type(b) and a == b


@contextmanager
def http_server(app: object, port: int = 0) -> Iterator[int]:
    """Serves an ASGI application on this host, on a thread; gives the port."""
    import uvicorn

    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="error", lifespan="off"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 20
    while not server.started and time.monotonic() < deadline:
        time.sleep(0.005)
    try:
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = server.force_exit = True
        thread.join(10)
