"""Tiny networks of Open-Sora's layout with the same weights each time."""

import torch

TRANSFORMER = {"width": 48, "heads": 4, "depth": 2, "text_dim": 12, "text_length": 6}
AUTOENCODER = {
    "widths": (8, 8, 16, 16), "layers": 1, "groups": 4, "temporal_width": 8, "temporal_multipliers": (1, 2, 2, 4),
    "temporal_blocks": 1, "temporal_groups": 4,
}  # fmt: skip


def fill(model):
    """Sets every tensor but the statistics of latents by its name's place in the alphabet."""
    state = model.state_dict()
    for seed, name in enumerate(sorted(state)):
        if name in ("shift", "scale"):
            continue
        tensor = state[name]
        noise = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(seed))
        if tensor.ndim == 1 and name.endswith("weight"):
            tensor.copy_(1 + 0.2 * noise)  # of normalisations
        else:
            fan = max(1, tensor[0].numel()) if tensor.ndim > 1 else 16
            tensor.copy_(noise / fan**0.5)
    return model
