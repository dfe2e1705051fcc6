"""Dataclasses of arrays as files, so that what was rendered once is read many times."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from worldstereo_ros.utils.atomic_files import atomic_path

_Arrays = TypeVar("_Arrays", bound="ArrayFields")


class ArrayFields:
    """Mixin of dataclasses all of whose fields are arrays."""

    def save(self, file: Path) -> None:
        """Writes an .npz file; it appears when it is complete."""
        with atomic_path(file) as partial, partial.open("wb") as stream:
            np.savez(stream, **self.arrays())

    @classmethod
    def load(cls: type[_Arrays], file: Path) -> _Arrays:
        """Reads a file of `save`.

        Raises:
            KeyError: an array is missing.
        """
        with np.load(file) as content:
            return cls(**{field.name: content[field.name] for field in fields(cls)})  # type: ignore[arg-type]

    def arrays(self) -> dict[str, Any]:
        """The arrays by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]
