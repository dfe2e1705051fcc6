"""Errors of export and of exported models, and imports of optional packages."""

from __future__ import annotations

import importlib
from typing import Any

from worldstereo_ros.utils.errors import WorldStereoError


class ModelExportError(WorldStereoError, RuntimeError):
    """A model cannot be exported, or an exported file cannot be used."""


def require_package(name: str) -> Any:
    """Imports an optional package.

    Args:
        name: name of the package.

    Raises:
        ModelExportError: the package cannot be imported.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ModelExportError(
            f"The package {name} is needed and cannot be imported ({error}); run pip install 'worldstereo_ros[export]'."
        ) from None
