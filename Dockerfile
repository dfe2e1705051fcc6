# syntax=docker/dockerfile:1
#
# The worldstereo node in a container, for machines without ROS or without root.
#
#   docker build --target cpu  -t worldstereo:cpu .
#   docker build --target cuda -t worldstereo:cuda .
#   docker run --rm --net=host --ipc=host worldstereo:cpu
#   docker run --rm --net=host --ipc=host --gpus all worldstereo:cuda
#   docker run --rm worldstereo:cpu worldstereo doctor
#
# NOT BUILT YET: the machine this was written on has no network for container images. What was checked there is that
# the Python requirements below resolve for Python 3.12. Please report what fails.
#
# Both targets start from ros:jazzy. The CUDA libraries come with PyTorch's wheels and the driver from the host (NVIDIA
# Container Toolkit), so no nvidia/cuda base image is needed. TensorRT is not included.
#
# --net=host and --ipc=host let DDS discover nodes of the host and use shared memory for images. The container runs as
# user `ubuntu` (UID 1000): shared memory works with host processes of the same UID only.

FROM ros:jazzy AS dependencies
ARG DEBIAN_FRONTEND=noninteractive
WORKDIR /workspace/src/worldstereo_ros
RUN apt-get update && apt-get install -y --no-install-recommends \
        libgl1 libgomp1 libusb-1.0-0 libx11-6 python3-pip python3-venv \
    && rm -rf /var/lib/apt/lists/*
# Numerical Python packages come from PyPI into one virtual environment, in one consistent set; rosdep skips them.
COPY package.xml .
RUN apt-get update && rosdep update --rosdistro jazzy && rosdep install --from-paths . --ignore-src -y -r \
        --skip-keys "python3-opencv python3-scipy python3-numba python3-rich python3-typer python3-imageio" \
    && rm -rf /var/lib/apt/lists/*
# The environment sees ROS's own Python packages. NumPy stays below 2: Jazzy's messages are compiled against NumPy 1.
RUN python3 -m venv --system-site-packages /opt/venv
COPY pyproject.toml .
RUN python3 - <<'PYTHON'
import tomllib
from pathlib import Path

project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
extras = project["optional-dependencies"]
lines = [*project["dependencies"], *extras["view"], *extras["export"], "numpy<2"]
Path("/tmp/requirements.txt").write_text("\n".join(lines) + "\n")
PYTHON

FROM dependencies AS dependencies-cpu
RUN /opt/venv/bin/pip install --no-cache-dir "numpy<2" torch --index-url https://download.pytorch.org/whl/cpu \
    && /opt/venv/bin/pip install --no-cache-dir -r /tmp/requirements.txt

FROM dependencies AS dependencies-cuda
RUN /opt/venv/bin/pip install --no-cache-dir -r /tmp/requirements.txt

# Interfaces are generated with the system's Python; scripts are started with the environment's (see the entrypoint).
FROM dependencies AS build
COPY . .
RUN . /opt/ros/jazzy/setup.sh && cd /workspace && colcon build --packages-select worldstereo_ros \
        --cmake-args -DCMAKE_BUILD_TYPE=Release -DBUILD_TESTING=OFF -DPython3_EXECUTABLE=/usr/bin/python3
COPY --chmod=755 <<'ENTRYPOINT' /workspace/entrypoint.sh
#!/bin/bash
set -e
source /opt/ros/jazzy/setup.bash
source /workspace/install/setup.bash
export PATH="/opt/venv/bin:/workspace/install/worldstereo_ros/lib/worldstereo_ros:$PATH"
exec "$@"
ENTRYPOINT

FROM dependencies-cpu AS cpu
COPY --from=build /workspace/install /workspace/install
COPY --from=build /workspace/entrypoint.sh /workspace/entrypoint.sh
USER ubuntu
WORKDIR /home/ubuntu
ENTRYPOINT ["/workspace/entrypoint.sh"]
CMD ["ros2", "launch", "worldstereo_ros", "worldstereo.launch.py", "device:=cpu"]

FROM dependencies-cuda AS cuda
COPY --from=build /workspace/install /workspace/install
COPY --from=build /workspace/entrypoint.sh /workspace/entrypoint.sh
USER ubuntu
WORKDIR /home/ubuntu
ENTRYPOINT ["/workspace/entrypoint.sh"]
CMD ["ros2", "launch", "worldstereo_ros", "worldstereo.launch.py", "device:=cuda"]
