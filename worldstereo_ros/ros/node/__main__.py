"""`python -m worldstereo_ros.ros.node` runs the node."""

from worldstereo_ros.ros.node.main import main

if __name__ == "__main__":
    main()
