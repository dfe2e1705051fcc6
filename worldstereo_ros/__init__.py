"""A world model for robots that says of every pixel whether it was observed or imagined."""

import os
from pkgutil import extend_path

# A robot's cores are shared. OpenMP's threads (torch's) spin while they wait for each other and on busy cores they take
# the very time of those they wait for: beside two busy processes that costs a factor of thirty. Read when torch loads.
os.environ.setdefault("GOMP_SPINCOUNT", "0")

# The ROS messages of this package are generated into an installed package of the same name; joining the two
# paths makes `worldstereo_ros.msg` importable beside a source checkout.
__path__ = extend_path(__path__, __name__)

__version__ = "0.1.0"
