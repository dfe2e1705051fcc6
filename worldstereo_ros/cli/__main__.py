"""`python -m worldstereo_ros.cli`, the same as the `worldstereo` command."""

from worldstereo_ros.cli.main import main

if __name__ == "__main__":
    main()
