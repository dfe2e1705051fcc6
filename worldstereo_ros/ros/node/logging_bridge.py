"""What the core says through Python's logging, in the node's own log."""

from __future__ import annotations

import logging
from typing import Protocol

CORE = "worldstereo_ros"


class RosLogger(Protocol):
    """The part of rclpy's logger that is used here."""

    def info(self, message: str) -> object:
        """Says it as information."""

    def warning(self, message: str) -> object:
        """Says it as a warning."""

    def error(self, message: str) -> object:
        """Says it as an error."""


class NodeLogHandler(logging.Handler):
    """Hands what the core logs on to a node's logger, from information upwards; `close` ends that."""

    def __init__(self, logger: RosLogger) -> None:
        super().__init__(logging.INFO)
        self._logger = logger
        self._core = logging.getLogger(CORE)
        self._level_before = self._core.level
        self._core.setLevel(logging.INFO)
        self._core.addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Passes one record on, as one line."""
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
        """Takes it back."""
        self._core.removeHandler(self)
        self._core.setLevel(self._level_before)
        super().close()
