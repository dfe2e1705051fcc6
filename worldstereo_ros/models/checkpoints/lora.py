"""LoRA files: low-rank changes of a network's weights, W + scale * B A (Hu et al., arXiv 2106.09685).

A file has two tensors for each changed weight: `<module>.lora_A.weight` (rank, in) and `<module>.lora_B.weight`
(out, rank), with an optional adapter name before `weight` and an optional `diffusion_model.` in front. AnyRecon's and
FixAnything's files are of this kind; both are merged with scale 1, whatever alpha they were trained with.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import save_file

from worldstereo_ros.models.checkpoints.tensor_files import TensorFiles, open_tensors
from worldstereo_ros.models.checkpoints.weights import CheckpointError, count_tensors, format_names
from worldstereo_ros.utils.atomic_files import atomic_path
from worldstereo_ros.utils.errors import InputError

PREFIX = "diffusion_model."
DEFAULT_ADAPTER = "default"  # the adapter name that peft gives, and that published files have
_FACTOR = re.compile(r"(?P<module>.+)\.lora_(?P<side>[AB])(?:\.(?P<adapter>[^.]+))?\.weight")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Lora:
    """A LoRA file whose every tensor is accounted for.

    Attributes:
        file: the file.
        pairs: names of the factors A and B in the file, by the name of the weight that they change.
        ranks: rank of each pair, by the same names.
        ignored: tensors that are left out, because the caller named them or because the reference leaves them out.
        tensors: the open file.
    """

    file: Path
    pairs: Mapping[str, tuple[str, str]]
    ranks: Mapping[str, int]
    tensors: TensorFiles = field(repr=False)
    ignored: tuple[str, ...] = ()

    def factors(self, name: str, device: str | torch.device = "cpu") -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the factors A (rank, in) and B (out, rank) of a weight.

        Raises:
            CheckpointError: the file cannot be read, or a factor is not finite.
        """
        read = dict(self.tensors.read(list(self.pairs[name]), device))
        for tensor_name, tensor in read.items():
            if not torch.isfinite(tensor).all():
                raise CheckpointError(f"{self.file}: {tensor_name} has numbers that are not finite; it is damaged.")
        a, b = (read[tensor_name] for tensor_name in self.pairs[name])
        return a, b


def open_lora(file: Path, shapes: Mapping[str, tuple[int, ...]], *, ignore: Collection[str] = ()) -> Lora:
    """Opens a LoRA file and compares all its tensors with the weights of a network; only shapes are read.

    A copy of a whole weight of the network (a bias, a norm) is left out with a warning: the published pipelines leave
    them out in silence, and their results hold without them.

    Args:
        file: a `.safetensors` file, or a PyTorch file (`.ckpt`), which is opened with `weights_only`.
        shapes: shapes of the network's weights by name.
        ignore: names of further tensors to leave out.

    Raises:
        CheckpointError: a tensor is unknown, a factor has no partner or changes no weight of this network, a shape
            does not fit, the file has factors of several adapters or none at all, or it cannot be read.
    """
    opened = open_tensors(file)
    factors: dict[str, dict[str, str]] = {}
    adapters: set[str] = set()
    others = []
    for key in opened.tensors:
        match = _FACTOR.fullmatch(key.removeprefix(PREFIX))
        if match is None:
            others.append(key)
            continue
        adapters.add(match["adapter"] or "")
        sides = factors.setdefault(f"{match['module']}.weight", {})
        if match["side"] in sides:
            raise CheckpointError(f"{file} has {key} and {sides[match['side']]}, two factors of one weight.")
        sides[match["side"]] = key
    if not factors:
        raise CheckpointError(
            f"{file} has no LoRA factors (names with .lora_A and .lora_B), and would change nothing; its tensors are "
            f"{format_names(list(opened.tensors))}."
        )
    if len(adapters) > 1:
        raise CheckpointError(f"{file} has factors of {len(adapters)} adapters ({', '.join(sorted(adapters))}).")
    whole = [key for key in others if key.removeprefix(PREFIX) in shapes]
    unknown = [key for key in others if key not in whole and key not in set(ignore)]
    if unknown:
        raise CheckpointError(
            f"{file} has {count_tensors(unknown)} that are neither LoRA factors nor weights of this network: "
            f"{format_names(unknown)}. If the file is the right one, name them in lora_ignore."
        )
    _check_factors(file, opened, factors, shapes)
    ignored = tuple(others)
    if ignored:
        logger.warning(
            "%s of %s are no LoRA factors and are left out: %s.", count_tensors(ignored), file, format_names(others)
        )
    pairs = {name: (sides["A"], sides["B"]) for name, sides in factors.items()}
    ranks = {name: opened.tensors[a].shape[0] for name, (a, _) in pairs.items()}
    return Lora(file, pairs, ranks, opened, ignored)


def merge(weight: torch.Tensor, a: torch.Tensor, b: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
    """Returns W + scale * B A, computed in the dtype of W: both factors are cast to it first, as the reference does.

    Args:
        weight: (out, in), or (out, in, 1, 1) of a 1x1 convolution.
        a: (rank, in) or (rank, in, 1, 1).
        b: (out, rank) or (out, rank, 1, 1).
        scale: factor of the change; 1 for published files. It is not alpha / rank.
    """
    change = b.to(weight).flatten(1) @ a.to(weight).flatten(1)
    return weight + (scale * change).view_as(weight)


def save_lora(
    file: Path, factors: Mapping[str, tuple[torch.Tensor, torch.Tensor]], *, adapter: str = DEFAULT_ADAPTER
) -> None:
    """Writes a LoRA file with the key names of the published ones.

    Args:
        file: `.safetensors` file; replaced only when the new one is complete.
        factors: A (rank, in) and B (out, rank) by the name of the weight, such as `blocks.0.self_attn.q.weight`.
        adapter: adapter name in the keys.

    Raises:
        InputError: there are no factors, or the name of a weight does not end in `.weight`.
        WriteError: the file cannot be written.
    """
    tensors = {}
    for name, pair in factors.items():
        module, dot, leaf = name.rpartition(".")
        if not dot or leaf != "weight":
            raise InputError(f"A LoRA changes weights, and '{name}' does not end in .weight.")
        for side, factor in zip("AB", pair, strict=True):
            tensors[f"{module}.lora_{side}.{adapter}.weight"] = factor.detach().cpu().contiguous()
    if not tensors:
        raise InputError(f"There are no LoRA factors to write to {file}.")
    file.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(file) as partial:
        save_file(tensors, str(partial), metadata={"format": "pt"})


def _check_factors(
    file: Path,
    opened: TensorFiles,
    factors: Mapping[str, Mapping[str, str]],
    shapes: Mapping[str, tuple[int, ...]],
) -> None:
    """Checks that every weight has both factors, exists, and has a shape that fits them."""
    foreign = [name for name in factors if name not in shapes]
    if foreign:
        raise CheckpointError(
            f"{file} changes {count_tensors(foreign)} that this network does not have: {format_names(foreign)}. It was "
            "made for another model, or for another layout of its names."
        )
    for name, sides in factors.items():
        if len(sides) == 1:
            (key,) = sides.values()
            raise CheckpointError(f"{file} has {key} without its partner {'AB'.replace(next(iter(sides)), '')}.")
        a, b, weight = opened.tensors[sides["A"]].shape, opened.tensors[sides["B"]].shape, shapes[name]
        tail = (1,) * (len(weight) - 2)
        if len(weight) not in (2, 4) or weight[2:] != tail:
            raise CheckpointError(f"{file} changes {name} of shape {weight}; a LoRA changes matrices alone.")
        if a[1:] != (*weight[1:2], *tail) or b != (weight[0], a[0], *tail) or a[0] < 1:
            raise CheckpointError(
                f"{file}: the factors {a} and {b} do not fit {name} of shape {weight}; it was made for another model."
            )
