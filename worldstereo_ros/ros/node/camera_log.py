"""Logs with which camera images are seen: rectified, raw, or without distortion."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from worldstereo_ros.geometry.calibration import CameraCalibration
from worldstereo_ros.ros.node.diagnostics import NodeDiagnostics
from worldstereo_ros.ros.node.synchronizer import SyncedFrame


class CameraLog:
    """Logs how images are seen: for the first one of a topic, and when its camera_info changes.

    Args:
        log: logs a line at level info.
        diagnostics: says whether a line is due; a zoom that changes each image must not fill the log.
        topics: resolved topic by the name of the input.
    """

    def __init__(self, log: Callable[[str], object], diagnostics: NodeDiagnostics, topics: Mapping[str, str]) -> None:
        self._log, self._diagnostics, self._topics = log, diagnostics, topics
        self._texts: dict[str, str] = {}  # by topic: what was logged of its camera

    def on_frame(self, frame: SyncedFrame, calibration: CameraCalibration, rectified: bool) -> None:
        """Takes an image with its camera_info."""
        text = describe_camera(frame, calibration, rectified)
        before = self._texts.get(frame.topic)
        if text == before or not self._diagnostics.is_log_due(f"camera {frame.topic}"):
            return
        self._texts[frame.topic] = text
        change = "" if before is None else "The camera_info has changed. "
        self._log(f"{change}Images of {self._topics[frame.topic]} are {text}")


def describe_camera(frame: SyncedFrame, calibration: CameraCalibration, rectified: bool) -> str:
    """Describes with which camera images are seen, and the parameter that changes it."""
    camera, info = calibration.camera, frame.info
    size = f"{camera.width}x{camera.height}, fx {camera.fx:.1f}, fy {camera.fy:.1f}"
    if rectified:
        return f"taken as rectified: seen with P of camera_info, without distortion ({size}; parameter `rectified`)."
    if not calibration.distorted:
        return f"seen with K of camera_info, which has no distortion ({size})."
    P = np.zeros(12) if info is None else np.asarray(info.p, dtype=np.float64)
    hint = " If they are rectified, set the parameter `rectified` to true." if P[0] else ""
    return f"taken as raw: the distortion of camera_info ({calibration.model}) is removed ({size}).{hint}"
