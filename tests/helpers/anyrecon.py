"""Golden sets of AnyRecon, and a tiny model in the layout of its published files."""

import re
from pathlib import Path

import torch
from safetensors.torch import load_file

from worldstereo_ros.models.checkpoints.wan_loading import load_wan_transformer, open_wan_transformer


def load_transformer(golden: Path, lora: Path | None = None, scale: float = 1.0, dtype=torch.float32):
    """Loads the transformer of a golden set, with a LoRA merged in."""
    ignore = () if lora is None else entries_that_are_no_factors(golden)
    return load_wan_transformer(
        open_wan_transformer(golden / "transformer", lora, lora_ignore=ignore), dtype=dtype, lora_scale=scale
    )


def entries_that_are_no_factors(golden: Path) -> list[str]:
    """Names in the LoRA of a golden set that the reference drops."""
    return [name for name in load_file(golden / "lora/lora.safetensors") if ".lora_" not in name]


def dense_inputs(io: dict[str, torch.Tensor], timestep: float) -> dict[str, torch.Tensor]:
    """The inputs of a forward: text is padded to 512 rows, and the mask is repeated four times."""
    mask = io["mask"].float().repeat(1, 4, 1, 1, 1)
    return {
        "hidden_states": torch.cat((io["noisy_latent"].float(), mask, io["condition_latent"].float()), dim=1),
        "timestep": torch.tensor([timestep]),
        "encoder_hidden_states": padded_text(io["text"]),
        "encoder_hidden_states_image": io["clip_features"].float(),
    }


def padded_text(text: torch.Tensor) -> torch.Tensor:
    """The first rows of an embedding, with zeros up to 512 rows."""
    out = torch.zeros(len(text), 512, text.shape[2])
    out[:, : text.shape[1]] = text
    return out


def tolerance_of(manifest: dict, file: str) -> float:
    """The tolerance of a file of a golden set."""
    return float(manifest[file]["tolerance"])


def tensors_of(tensors: dict[str, torch.Tensor], pattern: str) -> list[str]:
    """Names that match a pattern; at least one."""
    found = [name for name in tensors if re.fullmatch(pattern, name)]
    assert found, pattern
    return found
