"""Looks at what the transformer is given before any work is done with it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from worldstereo_ros.utils.errors import InputError

TEXT_TOKENS = 512  # what splits image from text tokens in Wan's cross-attention


def check_inputs(config: Mapping[str, Any], **given: Any) -> tuple[int, ...]:
    """The keyframe that each reference stands beside; () where nothing is remembered.

    Args:
        config: the configuration of the transformer.
        given: the inputs of its forward by name.

    Raises:
        ValueError: an input is missing, or its shape does not fit the others.
    """
    hidden = given["hidden_states"]
    channels = config["in_channels"]
    if hidden.ndim != 5 or hidden.shape[1] != channels:
        raise InputError(f"hidden_states has shape {tuple(hidden.shape)}; (batch, {channels}, F, h, w) was expected.")
    batch, _, frames, height, width = hidden.shape
    if any(size % patch for size, patch in zip((frames, height, width), config["patch_size"], strict=True)):
        raise InputError(f"A latent of {frames}x{height}x{width} does not divide by patches {config['patch_size']}.")
    _want("timestep", given["timestep"], (batch,))
    text, image = given["encoder_hidden_states"], given["encoder_hidden_states_image"]
    _want("encoder_hidden_states", text, (batch, None, config["text_dim"]))
    if image is not None:
        if config["image_dim"] is None:
            raise InputError("encoder_hidden_states_image was given and this model has no image embedding.")
        _want("encoder_hidden_states_image", image, (batch, None, config["image_dim"]))
    if config["added_kv_proj_dim"] is not None and (image is None or text.shape[1] != TEXT_TOKENS):
        raise InputError(
            f"This model wants an image embedding and exactly {TEXT_TOKENS} text tokens, zero padded; "
            f"there are {text.shape[1]} text tokens and {'no' if image is None else 'an'} image embedding."
        )
    _check_control(config, given, batch, frames, height, width)
    return _check_references(config, given, batch, frames, height, width)


def _check_control(config: Mapping[str, Any], given: Mapping[str, Any], b: int, F: int, h: int, w: int) -> None:
    control = config["controlnet_cfg"]
    if not control:
        return
    if given["render_latent"] is None or given["render_mask"] is None:
        raise InputError("This model has a control branch: render_latent and render_mask are needed.")
    _want("render_latent", given["render_latent"], (b, None, F, h, w))
    _want("render_mask", given["render_mask"], (b, 1, None, 8 * h, 8 * w))
    rays, wanted = given["camera_embedding"], control.get("add_channels", 1) - 1
    if (rays is None) != (wanted == 0):
        state = "missing" if rays is None else "given"
        raise InputError(f"camera_embedding is {state} and the control branch takes {wanted} channels of it.")
    if rays is not None:
        _want("camera_embedding", rays, (b, wanted, given["render_mask"].shape[2], 8 * h, 8 * w))
    layout, channels = given["layout"], control.get("layout_channels", 0)
    if (layout is None) != (channels == 0):
        state = "missing" if layout is None else "given"
        raise InputError(f"layout is {state} and the control branch takes {channels} channels of it.")
    if layout is not None:
        _want("layout", layout, (b, channels, F, h, w))


def _check_references(
    config: Mapping[str, Any], given: Mapping[str, Any], b: int, F: int, h: int, w: int
) -> tuple[int, ...]:
    poses = 7 if not config["controlnet_cfg"] else config["controlnet_cfg"].get("camera_embedding_dim", 7)
    if given["camera_qt"] is not None:
        _want("camera_qt", given["camera_qt"], (b, F, poses))
    latent, index = given["reference_latent"], given["ref_index"]
    if latent is None or latent.shape[2] == 0:
        return ()
    _want("reference_latent", latent, (b, config["in_channels"], None, h, w))
    references = latent.shape[2]
    if index is None:
        raise InputError(f"{references} references were given without ref_index, the keyframe each is attached to.")
    _want("ref_index", index, (references,))
    attached = [int(i) for i in index]
    if min(attached) < 0 or max(attached) > F - 2:
        raise InputError(f"ref_index is {attached}; with {F} keyframes it must lie in 0..{F - 2}.")
    if given["camera_qt_ref"] is not None:
        _want("camera_qt_ref", given["camera_qt_ref"], (b, references, poses))
    elif given["camera_qt"] is not None:
        raise InputError("camera_qt was given without camera_qt_ref; references need their cameras too.")
    return tuple(i + 1 for i in attached)


def _want(name: str, tensor: torch.Tensor, shape: tuple[int | None, ...]) -> None:
    have = tuple(tensor.shape)
    if len(have) != len(shape) or any(want is not None and want != n for n, want in zip(have, shape, strict=True)):
        wanted = ", ".join("any" if n is None else str(n) for n in shape)
        raise InputError(f"{name} has shape {have}; ({wanted}) was expected.")
