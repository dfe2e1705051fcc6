"""Views that the refiner is trained on, in the memory of the training device, and a thread that adds new ones."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from worldstereo_ros.training.data.refiner_views import RefinerViews, ViewMakers, as_tensors, load_views

VALIDATION_WORLDS = 5
CELL_PX = 8  # of the grid on which centres of crops are drawn


class ViewPool:
    """Views of one size on a device, up to a capacity.

    Args:
        capacity: largest number of views.
        device: where they are kept, as bytes.
    """

    def __init__(self, capacity: int, device: torch.device) -> None:
        self.capacity, self.device = capacity, device
        self._arrays: list[torch.Tensor] = []
        self._cells = torch.zeros(0)
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, views: RefinerViews) -> None:
        """Adds views, as many as there is room for; those of another size than the first ones are left out."""
        if not len(views.truth):
            return
        if not self._arrays:
            self._arrays = [
                torch.zeros((self.capacity, *array.shape[1:]), dtype=torch.from_numpy(array).dtype, device=self.device)
                for array in views
            ]
            cells = views.unseen[0, 0, ::CELL_PX, ::CELL_PX]
            self._cells = torch.zeros((self.capacity, cells.size), device=self.device)
        if self._arrays[-1].shape[1:] != views.truth.shape[1:]:
            return
        end = min(self._count + len(views.truth), self.capacity)
        number = end - self._count
        for kept, array in zip(self._arrays, views, strict=True):
            kept[self._count : end] = torch.from_numpy(array[:number]).to(self.device)
        unseen = torch.from_numpy(views.unseen[:number, 0, ::CELL_PX, ::CELL_PX]).to(self.device).flatten(1) > 0
        # A view of which no cell is unseen is cropped anywhere.
        self._cells[self._count : end] = torch.where(unseen.any(dim=1, keepdim=True), unseen, True).float()
        self._count = end  # last: until then, other threads do not draw from these

    def crops(self, count: int, size: int, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
        """Random crops around unseen pixels, half of them mirrored.

        Args:
            count: number of crops.
            size: height and width in pixels; smaller views give smaller crops.
            generator: random numbers, on the device of the pool.

        Returns:
            sources, plain, unseen and truth as float32 tensors (count, ..., size, size), images in [-1, 1].
        """
        height, width = self._arrays[-1].shape[-2:]
        rows, columns = min(size, height), min(size, width)

        def random(*shape: int) -> torch.Tensor:
            return torch.rand(shape, generator=generator, device=self.device)

        index = (random(count) * self._count).long()
        cell = torch.multinomial(self._cells[index], 1, generator=generator)[:, 0]
        across = -(-width // CELL_PX)
        corner = torch.stack((cell // across, cell % across), 1) * CELL_PX
        corner = corner - (random(count, 2) * torch.tensor((rows, columns), device=self.device)).long()
        limit = torch.tensor((height - rows, width - columns), device=self.device)
        corner = torch.minimum(corner.clamp_min(0), limit)
        row = corner[:, :1] + torch.arange(rows, device=self.device)
        column = corner[:, 1:] + torch.arange(columns, device=self.device)
        column = torch.where(random(count, 1) < 0.5, column.flip(1), column)
        parts = [
            array[index[:, None, None], :, row[:, :, None], column[:, None, :]].permute(0, 3, 1, 2)
            for array in self._arrays
        ]
        return as_tensors(parts)

    def views(self, indices: list[int]) -> tuple[torch.Tensor, ...]:
        """Whole views, as `crops` returns them."""
        return as_tensors([array[indices] for array in self._arrays])


class GrowingPool:
    """Pools of training and validation views that processes make, the training views while training runs.

    Args:
        makers: makes the views; closed with this.
        training, validation: capacities of the pools.
        initial: number of training views that are waited for. The others follow, if processes make the views.
        device: of the pools.
        console: for the progress bar.
    """

    def __init__(
        self,
        makers: ViewMakers,
        training: int,
        validation: int,
        initial: int,
        device: torch.device,
        console: Console | None = None,
    ) -> None:
        self.training, self.validation = ViewPool(training, device), ViewPool(validation, device)
        self._makers, self._closing = makers, False
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        try:
            worlds = min(VALIDATION_WORLDS, validation)
            validation_files, files = makers.files("validation", worlds), makers.files("training")
            for file in validation_files:
                views = load_views(file)
                number = min(-(-validation // worlds), len(views.truth))
                chosen = np.linspace(0, len(views.truth) - 1, number).astype(int)
                self.validation.add(RefinerViews(*(array[chosen] for array in views)))
            count = min(initial or training, training) if makers.processes else training
            self._fill(files, count, console or Console())
        except BaseException:
            makers.close()
            raise
        if len(self.training) < training and makers.processes:
            self._thread = threading.Thread(target=self._continue, args=(files,), daemon=True)
            self._thread.start()
        else:
            makers.close()

    def _fill(self, files: Iterator[Path], count: int, console: Console) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
            task = bar.add_task("imagining views", total=count)
            for file in files:
                self.training.add(load_views(file))
                bar.update(task, completed=min(len(self.training), count))
                if len(self.training) >= count:
                    break

    def _continue(self, files: Iterator[Path]) -> None:
        try:
            for file in files:
                if self._closing:
                    return
                self.training.add(load_views(file))
                if len(self.training) >= self.training.capacity:
                    break
        except BaseException as error:
            if not self._closing:
                self._error = error

    def check(self) -> None:
        """Raises what ended the thread that adds views."""
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """Ends the thread and the processes."""
        self._closing = True
        self._makers.close()
