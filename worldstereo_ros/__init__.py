"""A world model for robots that says of every pixel whether it was observed or imagined."""

from pkgutil import extend_path

# The ROS messages of this package are generated into an installed package of the same name; joining the two
# paths makes `worldstereo_ros.msg` importable beside a source checkout.
__path__ = extend_path(__path__, __name__)

__version__ = "0.1.0"
