"""Forwards the messages of Python's logging to the node's ROS log."""

from __future__ import annotations

import logging
from typing import Protocol

PACKAGE_LOGGER = "worldstereo_ros"


class RosLogger(Protocol):
    """The methods of rclpy's logger that are used here."""

    def info(self, message: str) -> object:
        """Logs at level info."""

    def warning(self, message: str) -> object:
        """Logs at level warning."""

    def error(self, message: str) -> object:
        """Logs at level error."""


class NodeLogHandler(logging.Handler):
    """Forwards the package's log messages of level info and above until `close`.

    Args:
        logger: logger of the node.
    """

    def __init__(self, logger: RosLogger) -> None:
        super().__init__(logging.INFO)
        self._logger = logger
        self._package_logger = logging.getLogger(PACKAGE_LOGGER)
        self._previous_level = self._package_logger.level
        self._package_logger.setLevel(logging.INFO)
        self._package_logger.addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Logs one record as one line."""
        try:
            line = " ".join(record.getMessage().split())
            if record.levelno >= logging.ERROR:
                self._logger.error(line)
            elif record.levelno >= logging.WARNING:
                self._logger.warning(line)
            else:
                self._logger.info(line)
        except Exception:
            self.handleError(record)

    def close(self) -> None:
        """Removes the handler and restores the log level."""
        self._package_logger.removeHandler(self)
        self._package_logger.setLevel(self._previous_level)
        super().close()
