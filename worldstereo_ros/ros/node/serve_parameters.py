"""The parameters `serve.*`: the server that imagines in place of this computer. Imports no rclpy."""

from __future__ import annotations

from dataclasses import dataclass

from worldstereo_ros.ros.node.parameter_rows import CONFIGURE, ConfigurationError, row
from worldstereo_ros.serving.addresses import check_robot, parse_url
from worldstereo_ros.utils.errors import InputError

SERVE = "serve"


@dataclass(frozen=True)
class ServeParameters:
    """The values of `serve.*`; their names in ROS begin with `serve.`."""

    url: str = row(
        "", "Server of `worldstereo serve`, for `backend: serve`: http://HOST:PORT or https://HOST:PORT.",
        applies=CONFIGURE,
    )  # fmt: skip
    token_file: str = row("", "File whose first line is the token that the server expects.", applies=CONFIGURE)
    timeout: float = row(
        10.0,
        "Time without a sign of life from the server, which gives one a second, after which this computer imagines.",
        unit="s",
        low=0.5,
        high=600.0,
        applies=CONFIGURE,
    )
    robot: str = row(
        "",
        "Id of this robot on the server, of letters, digits, '_', '-' and '.', different for each robot; empty = the "
        "host's name and a random number.",
        applies=CONFIGURE,
    )


def check_serve(backend: str, chosen: ServeParameters) -> None:
    """Raises ConfigurationError if the parameters do not say which server, or contradict each other."""
    try:
        if chosen.url:
            parse_url(chosen.url)
        if chosen.robot:
            check_robot(chosen.robot)
    except InputError as error:
        raise ConfigurationError(f"A parameter of serve.* is not usable. {error}") from None
    if backend == SERVE and not (chosen.url and chosen.token_file):
        raise ConfigurationError(
            f"backend is 'serve', serve.url '{chosen.url}' and serve.token_file '{chosen.token_file}'; both are needed."
        )
