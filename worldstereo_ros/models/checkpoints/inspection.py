"""Summarises a checkpoint before it is loaded; only headers and configuration files are read."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch

from worldstereo_ros.models.checkpoints.hub import Checkpoint, find_checkpoint
from worldstereo_ros.models.checkpoints.loading import build_transformer, compare_state_dicts
from worldstereo_ros.models.checkpoints.parameters import memory_needed
from worldstereo_ros.models.checkpoints.weights import format_names

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class CheckpointReport:
    """Summary of a checkpoint, from `inspect_checkpoint`.

    Attributes:
        folder: folder of the variant.
        variant: name of the variant.
        base_model: base model as named in `config.json`.
        backbone: sizes of the backbone, as text.
        control: sizes of the control branch, as text.
        clip: keyframes and image sizes, as text.
        text: text conditioning, as text.
        sampler: steps and guidance, as text.
        parameters: number of parameters of the transformer.
        from_checkpoint: number of tensors that the checkpoint has.
        from_base: number of tensors that are taken from the base model.
        file_bytes: size of the checkpoint's files.
        stored: number of stored tensors by dtype.
        memory: size of the transformer's weights in bytes, by dtype.
        missing_keys: tensors that no file has.
        unexpected_keys: tensors in the checkpoint that the model does not have.
        problems: messages; empty if the checkpoint can be loaded.
        removed: what is removed from the names of the tensors, such as `module.`.
    """

    folder: Path
    variant: str
    base_model: str
    backbone: str
    control: str
    clip: str
    text: str
    sampler: str
    parameters: int
    from_checkpoint: int
    from_base: int
    file_bytes: int
    stored: dict[str, int]
    memory: dict[str, int]
    missing_keys: list[str]
    unexpected_keys: list[str]
    problems: list[str]
    removed: tuple[str, ...] = ()

    @property
    def usable(self) -> bool:
        """Whether the checkpoint can be loaded."""
        return not self.problems

    def rows(self) -> list[tuple[str, str]]:
        """Returns (label, value) rows for a table."""
        stored = ", ".join(f"{count} {dtype}" for dtype, count in sorted(self.stored.items()))
        rows = [
            ("folder", str(self.folder)),
            ("variant", self.variant),
            ("base model", self.base_model),
            ("backbone", self.backbone),
            ("control branch", self.control),
            ("clip", self.clip),
            ("text", self.text),
            ("sampler", self.sampler),
            ("parameters", f"{self.parameters:,}"),
            ("tensors", f"{self.from_checkpoint} from the checkpoint ({stored}), {self.from_base} from the base model"),
            ("files", _format_bytes(self.file_bytes)),
            ("memory needed", ", ".join(f"{name} {_format_bytes(count)}" for name, count in self.memory.items())),
            ("missing", _format_keys(self.missing_keys)),
            ("unexpected", _format_keys(self.unexpected_keys)),
        ]
        if self.removed:
            rows.append(("removed", f"{', '.join(self.removed)} in the names of tensors"))
        return rows + [("problem", message) for message in self.problems]

    def __str__(self) -> str:
        return "\n".join(f"{label:<15}{value}" for label, value in self.rows())


def inspect_checkpoint(
    model: str | Path | Checkpoint, variant: str | None = None, *, local_files_only: bool = False
) -> CheckpointReport:
    """Summarises a checkpoint without loading it.

    Args:
        model: see `find_checkpoint`, or its result.
        variant: see `find_checkpoint`.
        local_files_only: see `find_checkpoint`.

    Raises:
        CheckpointError: there is no such checkpoint, or a file is damaged. Missing and unexpected tensors are no errors
            here; they are in the report.
    """
    if not isinstance(model, Checkpoint):
        model = find_checkpoint(model, variant, local_files_only=local_files_only)
    transformer = build_transformer(model)
    tensors = compare_state_dicts(model, transformer)
    config, backbone, control = model.config, transformer.config, model.config.controlnet_cfg
    references = "updated" if transformer.update_references else "frozen"
    memory = f", references {references}, camera tokens" if transformer.has_memory_branch else ""
    steps = f"DMD, {config.raw['dmd_steps']} steps" if config.distilled else "UniPC"
    guidance = f"guidance {config.guidance:g}" if config.guidance > 1 else "no guidance"
    sizes = ", ".join(f"{height}x{width}" for height, width in config.scale_map)
    width = backbone.num_attention_heads * backbone.attention_head_dim
    return CheckpointReport(
        folder=model.folder,
        variant=model.variant,
        base_model=config.base_model,
        backbone=f"{backbone.num_layers} blocks, width {width}, {backbone.num_attention_heads} heads{memory}",
        control=f"{control['num_layers']} blocks, width {control['dim']}, {control['num_heads']} heads",
        clip=f"{config.nframe} keyframes of {sizes}",
        text="UMT5 of the base model" if config.uses_text else "none: prompts are ignored",
        sampler=f"{steps}, {guidance}",
        parameters=sum(p.numel() for p in transformer.parameters()),
        from_checkpoint=len(tensors.from_checkpoint),
        from_base=len(tensors.from_base),
        file_bytes=sum(file.stat().st_size for file in tensors.weights.files),
        stored=dict(Counter(info.dtype for info in tensors.weights.tensors.values())),
        memory={name: memory_needed(transformer, dtype) for name, dtype in DTYPES.items()},
        missing_keys=tensors.missing_keys,
        unexpected_keys=tensors.unexpected_keys,
        problems=tensors.problems(),
        removed=tensors.weights.removed,
    )


def _format_keys(names: list[str]) -> str:
    return f"{len(names)}: {format_names(names)}" if names else "none"


def _format_bytes(count: int) -> str:
    for power, unit in ((30, "GiB"), (20, "MiB"), (10, "KiB")):
        if count >= 2**power:
            return f"{count / 2**power:.1f} {unit}"
    return f"{count} bytes"
