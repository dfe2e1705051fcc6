"""Run the `worldstereo` command: `python -m worldstereo_ros.cli`."""

from worldstereo_ros.cli.main import main

if __name__ == "__main__":
    main()
