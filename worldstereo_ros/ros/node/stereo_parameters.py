"""The parameters `stereo.*`: the other eye of the camera, as topics. Imports no rclpy."""

from __future__ import annotations

from dataclasses import dataclass

from worldstereo_ros.ros.node.parameter_rows import CONFIGURE, row


@dataclass(frozen=True)
class StereoParameters:
    """The values of `stereo.*`; their names in ROS begin with `stereo.`."""

    enabled: bool = row(
        False,
        "Publish the camera's image as the left eye of a pair, and a made right eye, on ~/stereo/*: for people and for "
        "software that needs two images. The pair is no sensor: it shows the depth that went into it.",
        applies=CONFIGURE,
    )
    base: float = row(0.065, "Distance between the eyes.", unit="m", low=0.001, high=20.0)
    strength: float = row(
        1.0, "Factor on all disparities; camera_info has the product with the base.", low=0.01, high=10.0
    )
    convergence: float = row(
        0.0,
        "Distance of what appears on the screen (the made eye is shifted, not turned); 0 = parallel eyes.",
        unit="m",
        low=0.0,
        high=10_000.0,
    )
    model: str = row(
        "",
        "What paints what no frame has seen: geometric (the background beside it), small (the bundled network), or the "
        "folder of a `worldstereo train stereo` run; empty = small on a GPU where it is bundled, else geometric.",
    )
    width: int = row(
        0, "Width of each eye; 0 = that of the images. Smaller ones are faster.", unit="pixels", low=0, high=4096
    )
    memory: int = row(
        6, "Past frames that fill what the camera does not see now; 0 = none.", unit="frames", low=0, high=64
    )
    max_rate: float = row(0.0, "Most pairs a second; 0 = as fast as they are made.", unit="Hz", low=0.0, high=240.0)
    threads: int = row(2, "Threads that make the other eye.", unit="threads", low=1, high=64)
    jpeg_quality: int = row(85, "JPEG quality of ~/stereo/sbs/compressed.", low=1, high=100)
