"""A world model for robots that says of every pixel whether it was observed or imagined."""

import os
from pkgutil import extend_path

# OpenMP threads (torch) spin while they wait for each other, which slows them down by up to a factor of 30 on a robot
# whose cores are busy. libgomp reads this variable when torch loads.
os.environ.setdefault("GOMP_SPINCOUNT", "0")

# The ROS messages are generated into an installed package of the same name. Joining both paths makes
# `worldstereo_ros.msg` importable beside a source checkout.
__path__ = extend_path(__path__, __name__)

__version__ = "0.1.0"
