"""What the files of AnyRecon are, from their headers: nothing is loaded."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from worldstereo_ros.models.checkpoints.tensor_files import open_tensors
from worldstereo_ros.models.checkpoints.wan_loading import open_wan_transformer
from worldstereo_ros.models.checkpoints.weights import CheckpointError
from worldstereo_ros.pipelines.anyrecon.files import AnyReconFiles, find_files

BYTES_PER_PARAMETER = 2  # bfloat16, as on CUDA


@dataclass(frozen=True)
class AnyReconReport:
    """Summary of the files of AnyRecon.

    Attributes:
        files: the files.
        details: label -> what was found.
        problems: messages; empty if the model can be loaded.
    """

    files: AnyReconFiles
    details: dict[str, str]
    problems: list[str]

    @property
    def usable(self) -> bool:
        """Whether the model can be loaded."""
        return not self.problems

    def __str__(self) -> str:
        rows = [*self.details.items(), *(("problem", message) for message in self.problems)]
        return "\n".join(f"{label:<15}{value}" for label, value in rows)


def inspect_anyrecon(path: str | Path) -> AnyReconReport:
    """Summarises the files of AnyRecon without loading them; every tensor of the transformer and the LoRA is compared.

    Args:
        path: as for `files.find_files`.

    Raises:
        CheckpointError: a file is missing.
    """
    files = find_files(path)
    details = {"model": "AnyRecon", "base": str(files.base), "LoRA": "none"}
    problems: list[str] = []
    try:
        opened = open_wan_transformer(files.base, files.lora)
        opened.build()
    except CheckpointError as error:
        problems.append(str(error))
    else:
        config, tensors = opened.config, opened.tensors.tensors
        stored = Counter(info.dtype for info in tensors.values())
        details["backbone"] = (
            f"{config['num_layers']} layers of {config['num_attention_heads']} heads, {config['in_channels']} channels"
        )
        details["parameters"] = f"{opened.num_parameters:,}"
        details["tensors"] = ", ".join(f"{count} {dtype}" for dtype, count in sorted(stored.items()))
        details["memory needed"] = (
            f"{opened.num_parameters * BYTES_PER_PARAMETER / 1e9:.1f} GB in bfloat16 for the transformer alone"
        )
        if opened.lora is not None:
            ranks = sorted(set(opened.lora.ranks.values()))
            details["LoRA"] = (
                f"{opened.lora.file}, {_size(opened.lora.file)}: {len(opened.lora.pairs)} weights, rank "
                f"{' and '.join(map(str, ranks))}"
            )
            if opened.lora.ignored:
                details["left out"] = f"{len(opened.lora.ignored)} tensors of the LoRA file that are no factors"
    for label, file in {"autoencoder": files.autoencoder, "CLIP": files.clip, "text encoder": files.text}.items():
        try:
            details[label] = f"{file}, {_size(file)}: {len(open_tensors(file).tensors)} tensors"
        except CheckpointError as error:
            problems.append(str(error))
    return AnyReconReport(files, details, problems)


def _size(file: Path) -> str:
    count = file.stat().st_size
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
