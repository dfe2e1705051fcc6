"""What a checkpoint is, before it is loaded: headers and settings alone are read."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch

from worldstereo_ros.models.checkpoints.hub import Checkpoint, find_checkpoint
from worldstereo_ros.models.checkpoints.loading import build_transformer, compare_state_dicts, memory_needed
from worldstereo_ros.models.checkpoints.weights import named

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class CheckpointReport:
    """What `inspect_checkpoint` finds.

    Attributes:
        folder: of the variant.
        variant: which one.
        base_model: as `config.json` names it.
        backbone: sizes of the backbone in words.
        control: sizes of the control branch in words.
        clip: keyframes and picture sizes in words.
        text: what becomes of a prompt, in words.
        sampler: steps and guidance in words.
        parameters: of the transformer.
        from_checkpoint: how many tensors the checkpoint gives.
        from_base: how many are left to the base.
        file_bytes: size of the checkpoint's files.
        stored: dtype of the stored tensors to their number.
        memory: type to bytes of the transformer's weights.
        missing: names that are nowhere.
        unexpected: names that the model has no place for.
        problems: sentences; [] where it can be loaded.
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
    missing: list[str]
    unexpected: list[str]
    problems: list[str]

    @property
    def usable(self) -> bool:
        """True where it can be loaded."""
        return not self.problems

    def rows(self) -> list[tuple[str, str]]:
        """(what, value) for a table."""
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
            ("tensors", f"{self.from_checkpoint} from the checkpoint ({stored}), {self.from_base} from the base"),
            ("files", _size(self.file_bytes)),
            ("memory needed", ", ".join(f"{name} {_size(count)}" for name, count in self.memory.items())),
            ("missing", f"{len(self.missing)}: {named(self.missing)}" if self.missing else "none"),
            ("unexpected", f"{len(self.unexpected)}: {named(self.unexpected)}" if self.unexpected else "none"),
        ]
        return rows + [("problem", sentence) for sentence in self.problems]

    def __str__(self) -> str:
        return "\n".join(f"{what:<15}{value}" for what, value in self.rows())


def inspect_checkpoint(
    model: str | Path | Checkpoint, variant: str | None = None, *, local_files_only: bool = False
) -> CheckpointReport:
    """Looks at a checkpoint without loading it.

    Args:
        model: as `find_checkpoint`, or what it gave.
        variant: as there.
        local_files_only: as there.

    Raises:
        CheckpointError: there is none, or a file is broken; what is only missing or superfluous is in the report.
    """
    if not isinstance(model, Checkpoint):
        model = find_checkpoint(model, variant, local_files_only=local_files_only)
    transformer = build_transformer(model)
    found = compare_state_dicts(model, transformer)
    settings, config, control = model.settings, transformer.config, model.settings.controlnet_cfg
    references = "references carried on" if transformer.update_references else "references frozen"
    memory = f", {references}, camera tokens" if transformer.has_memory else ""
    steps = f"DMD, {settings.raw['dmd_steps']} steps" if settings.distilled else "UniPC"
    guidance = f"guidance {settings.guidance:g}" if settings.guidance > 1 else "no guidance"
    sizes = ", ".join(f"{h}x{w}" for h, w in settings.scale_map)
    width = config.num_attention_heads * config.attention_head_dim
    return CheckpointReport(
        folder=model.folder,
        variant=model.variant,
        base_model=settings.base_model,
        backbone=f"{config.num_layers} blocks, width {width}, {config.num_attention_heads} heads{memory}",
        control=f"{control['num_layers']} blocks, width {control['dim']}, {control['num_heads']} heads",
        clip=f"{settings.nframe} keyframes of {sizes}",
        text="UMT5 of the base" if settings.reads_text else "none: a prompt is ignored",
        sampler=f"{steps}, {guidance}",
        parameters=sum(p.numel() for p in transformer.parameters()),
        from_checkpoint=len(found.checkpoint),
        from_base=len(found.base),
        file_bytes=sum(file.stat().st_size for file in found.weights.files),
        stored=dict(Counter(info.dtype for info in found.weights.tensors.values())),
        memory={name: memory_needed(transformer, dtype) for name, dtype in DTYPES.items()},
        missing=found.missing,
        unexpected=found.unexpected,
        problems=found.problems(),
    )


def _size(count: int) -> str:
    for power, unit in ((30, "GiB"), (20, "MiB"), (10, "KiB")):
        if count >= 2**power:
            return f"{count / 2**power:.1f} {unit}"
    return f"{count} bytes"
