"""Procedural worlds, rendered by ray casting in torch with exact depth, normals and object ids.

    scene = make_scene("room", seed=seed_of("demo", 0))
    frames = render_scene(scene, Camera.from_fov(640, 480, 1.4), make_path(scene, "ground", 21, seed=0))

World axes are those of ROS (x forward, y left, z up) with the floor at z = 0; cameras have OpenCV axes.
"""

from worldstereo_ros.scenes.kinds.builders import KINDS, make_scene
from worldstereo_ros.scenes.objects.moving_objects import add_moving_objects
from worldstereo_ros.scenes.paths import PATHS, clearance, make_path
from worldstereo_ros.scenes.raytracing.motion import MovingObject, Track
from worldstereo_ros.scenes.raytracing.packing import PackedScenes, pack
from worldstereo_ros.scenes.raytracing.render import render_batch, render_scene, render_view
from worldstereo_ros.scenes.raytracing.scene import Scene, SceneFrames
from worldstereo_ros.scenes.raytracing.scene_flow import advect, object_motion, scene_flow
from worldstereo_ros.scenes.sensor import SensorNoise, add_noise, motion_blur
from worldstereo_ros.scenes.splits import DEMO, SPLITS, TEST, TRAINING, VALIDATION, seed_of

__all__ = [
    "DEMO", "KINDS", "PATHS", "SPLITS", "TEST", "TRAINING", "VALIDATION", "MovingObject", "PackedScenes", "Scene",
    "SceneFrames", "SensorNoise", "Track", "add_moving_objects", "add_noise", "advect", "clearance", "make_path",
    "make_scene", "motion_blur", "object_motion", "pack", "render_batch", "render_scene", "render_view", "scene_flow",
    "seed_of",
]  # fmt: skip
