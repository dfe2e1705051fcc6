#!/usr/bin/env python3
"""Start the ROS 2 node, send it what a camera sees, and ask for the views along a path.

python examples/06_ros_client.py

Needs ROS 2 (`make setup` installs it into .venv). On a robot the node runs already: `ros2 launch worldstereo_ros
worldstereo.launch.py`. Here it is a child process. The result is in example_out/ros/.
"""

import subprocess
import sys
from pathlib import Path

from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.geometry.trajectories import trajectory
from worldstereo_ros.io.images import write_image
from worldstereo_ros.ros.client.client import WorldStereoClient
from worldstereo_ros.scenes import make_path, make_scene, render_view, seed_of
from worldstereo_ros.visualization.results import view_contact_sheet

OUT = Path("example_out/ros")
NODE = [sys.executable, "-m", "worldstereo_ros.ros.node", "--ros-args", "--log-level", "warn"]


def main() -> None:
    """Send two observations, imagine six views, save the map."""
    OUT.mkdir(parents=True, exist_ok=True)
    scene, camera = make_scene("room", seed_of("demo", 1)), Camera.from_fov(320, 240, 1.2)
    observed = [render_view(scene, camera, pose) for pose in make_path(scene, "handheld", 5, seed=2)[::4]]
    path = trajectory("orbit", observed[-1].world_from_camera, 6, angle=0.4)

    parameters = {"model": "small", "map_directory": OUT.resolve()}
    node = subprocess.Popen(NODE + [word for name, value in parameters.items() for word in ("-p", f"{name}:={value}")])
    try:
        with WorldStereoClient(publish_tf=True) as client:
            client.wait_until_ready()
            for view in observed:
                client.add_observation(view)  # publishes image, depth, camera_info and TF
            print(f"the node has {len(observed)} observations")
            result = client.imagine(path, on_feedback=lambda message: print(f"  {message.stage} {message.step}"))
            print(f"imagined {len(result.views)} views in {result.seconds:.1f} s, error code {result.error_code}")
            print(f"save_map: {client.save_map('room')}")
    finally:
        node.terminate()
        node.wait(20)

    write_image(OUT / "views.png", view_contact_sheet(result.views, observed, title="imagined by the node"))
    print(f"wrote {OUT / 'views.png'}")


if __name__ == "__main__":
    main()
