"""Opens streams of point maps by the node's parameters, and keeps what they load. Imports no rclpy."""

from __future__ import annotations

from typing import Any

from worldstereo_ros.depth.estimators import NONE, load_depth_estimator
from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.pipelines.pointmaps.windows import OVERLAP, PointmapStream
from worldstereo_ros.ros.node.parameters import NodeParameters
from worldstereo_ros.ros.node.world_factory import effective_device


class StreamFactory:
    """Loads the depth estimator and the network of point maps once for all streams."""

    def __init__(self) -> None:
        self._loaded: dict[str, tuple[object, Any]] = {}

    def open(self, camera: Camera, parameters: NodeParameters) -> PointmapStream:
        """A stream for images of a camera.

        Raises:
            InputError: the network's weights are missing (`pointmaps.method` small).
            ValueError: the depth estimator cannot be loaded.
        """
        from worldstereo_ros.pipelines.pointmaps.refinement import is_available, load_refiner

        device, chosen = effective_device(parameters.device), parameters.pointmaps
        name = "" if parameters.depth_model == NONE else parameters.depth_model
        estimator = self._once("depth", (name, device), lambda: load_depth_estimator(name, device))
        method = chosen.method if chosen.method != "auto" else "small" if is_available() else "map"
        refiner = self._once("network", device, lambda: load_refiner(None, device)) if method == "small" else None
        return PointmapStream(
            camera, method=method, window=chosen.window, overlap=OVERLAP, estimator=estimator, refiner=refiner
        )

    def _once(self, what: str, key: object, load: Any) -> Any:
        if self._loaded.get(what, (None, None))[0] != key:
            self._loaded[what] = key, load()
        return self._loaded[what][1]
