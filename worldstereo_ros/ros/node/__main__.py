"""`python -m worldstereo_ros.ros.node` runs the node."""

import gc


def run() -> None:
    """Imports the node and runs it."""
    gc.disable()  # nothing is garbage yet, and searching for it takes a seventh of the time of the imports
    from worldstereo_ros.ros.node.main import main

    gc.enable()
    main()


if __name__ == "__main__":
    run()
