"""Views, sequences and scenes for the tests of the viewer: a wall, a room and a path through it."""

import json

import cv2
import numpy as np

from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.geometry.poses import quaternion_from_pose
from worldstereo_ros.geometry.provenance import Provenance
from worldstereo_ros.geometry.trajectories import trajectory
from worldstereo_ros.geometry.views import ImaginedView, View
from worldstereo_ros.visualization.viewer.loading import Viewable

CAMERA = Camera.from_fov(40, 30, np.radians(70))
# Camera at the origin of a world whose z is up, looking along x.
LEVEL = np.array([[0.0, 0, 1, 0], [-1, 0, 0, 0], [0, -1, 0, 1.2], [0, 0, 0, 1]])
POSES = trajectory("forward", LEVEL, 4, distance=0.6)


def wall_view(pose, distance=2.0, number=0):
    """A view of the wall x = distance, red in its left half (y > 0), green in its right."""
    depth = np.full((30, 40), distance - pose[0, 3], dtype=np.float32)
    image = np.zeros((30, 40, 3), np.uint8)
    image[:, :20, 0], image[:, 20:, 1] = 200, 180
    image[:3, :3] = number
    return View(image, CAMERA, pose, depth)


def write_sequence(folder, views, *, observed=None, conditioning=False, depth=True):
    """Writes a posed sequence without the package's writer, as other programs do."""
    for index, view in enumerate(views):
        files = {"frames": cv2.cvtColor(view.image, cv2.COLOR_RGB2BGR)}
        if depth:
            files["depth"] = np.round(view.depth * 1000).astype(np.uint16)
        if observed is not None:
            files["observed"] = observed.astype(np.uint8) * 255
        if conditioning:
            files["conditioning"] = np.full_like(view.image, 128)
        for name, image in files.items():
            (folder / name).mkdir(parents=True, exist_ok=True)
            assert cv2.imwrite(str(folder / name / f"{index:06d}.png"), image)
    lines = ["# index tx ty tz qx qy qz qw"]
    for index, view in enumerate(views):
        lines.append(" ".join(map(str, (index, *np.concatenate(quaternion_from_pose(view.world_from_camera))))))
    (folder / "poses.txt").write_text("\n".join(lines))
    intrinsics = {name: getattr(CAMERA, name) for name in ("width", "height", "fx", "fy", "cx", "cy")}
    (folder / "intrinsics.json").write_text(json.dumps({**intrinsics, "depth_scale": 1000, "metric": True}))
    return folder


def imagined_viewable(views, count=3):
    """A room with floor, wall and ceiling and a path through it.

    Its left half (y > 0) is observed, the right one imagined, and a strip of 0.3 m at the right end estimated. The
    confidences of what is not observed grow with the distance along x, from 0 to 1.
    """
    rng = np.random.default_rng(1)
    floor = np.stack([rng.uniform(0, 3, 4000), rng.uniform(-1.5, 1.5, 4000), np.zeros(4000)], 1)
    wall = np.stack([np.full(4000, 3.0), rng.uniform(-1.5, 1.5, 4000), rng.uniform(0, 2.6, 4000)], 1)
    ceiling = floor + np.array([0, 0, 2.6])
    points = np.concatenate([floor, wall, ceiling]).astype(np.float32)
    provenance = np.where(points[:, 1] > 0, Provenance.OBSERVED, Provenance.IMAGINED).astype(np.uint8)
    provenance[points[:, 1] < -1.2] = Provenance.ESTIMATED
    half = np.zeros((30, 40), bool)
    half[:, :20] = True
    imagined = tuple(
        ImaginedView(v.image, CAMERA, v.world_from_camera, v.depth, half, conditioning=v.image, index=i, count=count)
        for i, v in enumerate(views[:count])
    )
    return Viewable(
        "room <1>",
        "results",
        points,
        np.full((12000, 3), 100, np.uint8),
        provenance,
        confidence=np.where(provenance == Provenance.IMAGINED, points[:, 0] / 3, np.float32(1)),
        depth_confidence=np.where(provenance == Provenance.OBSERVED, np.float32(1), points[:, 0] / 3),
        observed_views=(views[0],),
        imagined=imagined,
        path=POSES[:count],
    )


def imagined_views(views):
    """Imagined views at the poses of all but the first view, their left half observed."""
    half = np.arange(40)[None].repeat(30, 0) < 20
    return [
        ImaginedView(v.image, CAMERA, v.world_from_camera, v.depth, half, conditioning=v.image, index=i, count=3)
        for i, v in enumerate(views[1:])
    ]
