"""`python -m worldstereo_ros.ros.node`: the node as a process."""

from worldstereo_ros.ros.node.node import main

if __name__ == "__main__":
    main()
