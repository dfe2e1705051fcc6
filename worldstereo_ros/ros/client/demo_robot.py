"""A simulated robot in a procedural world: publishes observations, then requests the views along a path.

    python -m worldstereo_ros.ros.client.demo_robot --scene room --views 24

The launch file demo.launch.py runs it beside the node and RViz.
"""

from __future__ import annotations

import argparse
import sys
import time

from worldstereo_ros.scenes.raytracing.render import render_view

OBSERVATION_PERIOD_S = 0.25
REPEAT_PERIOD_S = 1.0
FIELD_OF_VIEW_RAD = 1.3  # horizontal


def main(arguments: list[str] | None = None) -> int:
    """Runs the robot, then publishes its last view until it is stopped. Returns the exit status."""
    parser = argparse.ArgumentParser(description="Simulated robot for the demo of the worldstereo node.")
    parser.add_argument("--node", default="/worldstereo", help="fully qualified name of the node")
    parser.add_argument("--scene", default="room", help="room, corridor or warehouse")
    parser.add_argument("--seed", type=int, default=0, help="random seed of the world")
    parser.add_argument("--views", type=int, default=24, help="views to imagine along the path")
    parser.add_argument("--observations", type=int, default=10, help="images the robot takes on its way")
    parser.add_argument("--width", type=int, default=320, help="width of the camera images")
    parser.add_argument("--once", action="store_true", help="exit after the path")
    if arguments is None:
        arguments = sys.argv[1:]
    if "--ros-args" in arguments:  # added by ros2 launch, for rclpy
        arguments = arguments[: arguments.index("--ros-args")]
    options = parser.parse_args(arguments)

    from worldstereo_ros.geometry.cameras import Camera
    from worldstereo_ros.geometry.poses import interpolate_poses
    from worldstereo_ros.ros.client.client import NodeTimeoutError, WorldStereoClient
    from worldstereo_ros.scenes import make_path, make_scene, seed_of

    world = make_scene(options.scene, seed_of("demo", options.seed))
    camera = Camera.from_fov(options.width, options.width * 3 // 4, FIELD_OF_VIEW_RAD)
    drive = make_path(world, "ground", 240, seed_of("demo", options.seed))
    observed_poses = interpolate_poses(drive[:120], options.observations)
    imagined_poses = interpolate_poses(drive[110:], options.views)
    with WorldStereoClient(options.node, publish_tf=True) as client:
        try:
            client.wait_until_ready(120)
            for number, pose in enumerate(observed_poses):
                last = render_view(world, camera, pose)
                client.publish_view(last)
                print(f"published observation {number + 1} of {options.observations}", flush=True)
                time.sleep(OBSERVATION_PERIOD_S)
            result = client.imagine(imagined_poses, remember=True)
        except NodeTimeoutError as error:
            print(f"robot: {error}", file=sys.stderr)
            return 1
        if result.error_code:
            print(f"robot: the goal ended with error {result.error_code}: {result.error_msg}", file=sys.stderr)
            return 1
        print(
            f"{len(result.views)} views in {result.seconds:.1f} s: {result.observed_fraction:.0%} of the pixels "
            f"observed, {result.estimated_fraction:.0%} estimated; the map is on {options.node}/map",
            flush=True,
        )
        try:
            while not options.once:  # RViz needs the robot's transforms to be recent
                client.publish_view(last)
                time.sleep(REPEAT_PERIOD_S)
        except KeyboardInterrupt:
            pass
    return 0


if __name__ == "__main__":
    sys.exit(main())
