"""Deserialises messages of standard input in a process of its own, with little address space; see `test_cdr`.

Input: for each message its type's index (1 byte), its length (4 bytes, little endian) and its bytes. Output: a line for
each, `ok` or the name of the exception.
"""

import resource
import sys

from rclpy.serialization import deserialize_message, serialize_message
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from tf2_msgs.msg import TFMessage
from worldstereo_ros.action import ImaginePath
from worldstereo_ros.msg import ImaginedView

TYPES = (Image, CompressedImage, CameraInfo, TFMessage, ImaginedView, ImaginePath.Goal)
ADDRESS_SPACE = 4 * 2**30


def main() -> None:
    for kind in TYPES:
        deserialize_message(serialize_message(kind()), kind)  # loads the libraries before the limit
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    data = sys.stdin.buffer
    while head := data.read(5):
        content = data.read(int.from_bytes(head[1:], "little"))
        try:
            deserialize_message(content, TYPES[head[0] % len(TYPES)])
            print("ok", flush=True)
        except Exception as error:
            print(type(error).__name__, flush=True)


if __name__ == "__main__":
    main()
