"""`python -m worldstereo_ros.cli` and the command `worldstereo`."""

import atexit
import gc

from worldstereo_ros.cli.interrupts import prepare_process


def main() -> None:
    """Runs the command; from the first moment on, Ctrl-C ends it without a traceback."""
    prepare_process()
    atexit.register(gc.freeze)  # the interpreter's last search for garbage in all modules would take most of a second
    from worldstereo_ros.cli.main import main as run

    run()


if __name__ == "__main__":
    main()
