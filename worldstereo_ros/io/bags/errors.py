"""The error of recordings."""

from __future__ import annotations

from worldstereo_ros.utils.errors import WorldStereoError


class BagError(WorldStereoError, ValueError):
    """A bag that cannot be read or written, or lacks what is needed."""
