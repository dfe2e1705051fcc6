"""A robot that drives through a procedural world: shows the node what it sees, then asks for the views along a path.

    python -m worldstereo_ros.ros.client.demo_robot --scene room --views 24

The launch file of the demo runs it beside the node and RViz.
"""

from __future__ import annotations

import argparse
import sys
import time

from worldstereo_ros.scenes.raytracing.render import render_view

LOOK_PERIOD = 0.25  # seconds between two views
FIELD_OF_VIEW = 1.3  # radians across


def main(arguments: list[str] | None = None) -> int:
    """Runs the robot once, then keeps its transforms alive until it is stopped. Returns the exit status."""
    parser = argparse.ArgumentParser(description="A robot for the demo of the worldstereo node.")
    parser.add_argument("--node", default="/worldstereo", help="fully qualified name of the node")
    parser.add_argument("--scene", default="room", help="room, corridor or warehouse")
    parser.add_argument("--seed", type=int, default=0, help="number of the world")
    parser.add_argument("--views", type=int, default=24, help="views to imagine along the path")
    parser.add_argument("--looks", type=int, default=10, help="views the robot takes on its way")
    parser.add_argument("--width", type=int, default=320, help="width of its camera's images")
    parser.add_argument("--once", action="store_true", help="end after the path")
    # What follows --ros-args is for rclpy, and was given by ros2 launch.
    given = sys.argv[1:] if arguments is None else arguments
    options = parser.parse_args(given[: given.index("--ros-args")] if "--ros-args" in given else given)

    from worldstereo_ros.geometry.cameras import Camera
    from worldstereo_ros.geometry.poses import interpolate_poses
    from worldstereo_ros.ros.client.client import NodeSilentError, WorldStereoClient
    from worldstereo_ros.scenes import make_path, make_scene, seed_of

    world = make_scene(options.scene, seed_of("demo", options.seed))
    camera = Camera.from_fov(options.width, options.width * 3 // 4, FIELD_OF_VIEW)
    drive = make_path(world, "ground", 240, seed_of("demo", options.seed))
    seen, ahead = interpolate_poses(drive[:120], options.looks), interpolate_poses(drive[110:], options.views)
    with WorldStereoClient(options.node) as client:
        try:
            client.wait_until_ready(120)
            for number, pose in enumerate(seen):
                last = render_view(world, camera, pose)
                client.publish_view(last)
                print(f"looked {number + 1} of {options.looks} times", flush=True)
                time.sleep(LOOK_PERIOD)
            result = client.imagine(ahead, remember=True)
        except NodeSilentError as error:
            print(f"robot: {error}", file=sys.stderr)
            return 1
        if result.error_code:
            print(f"robot: the path ended with {result.error_code}: {result.error_msg}", file=sys.stderr)
            return 1
        print(f"{len(result.views)} views in {result.seconds:.1f} s. The map stays on {options.node}/map.", flush=True)
        try:
            while not options.once:  # RViz shows nothing in a frame that is not on /tf any more
                client.publish_view(last)
                time.sleep(1.0)
        except KeyboardInterrupt:
            pass
    return 0


if __name__ == "__main__":
    sys.exit(main())
