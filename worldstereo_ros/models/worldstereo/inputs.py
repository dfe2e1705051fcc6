"""Validates the inputs of the transformer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from worldstereo_ros.utils.errors import InputError

NUM_TEXT_TOKENS = 512  # Wan's cross-attention takes the last 512 tokens of the context for text


def check_inputs(config: Mapping[str, Any], **inputs: Any) -> tuple[int, ...]:
    """Checks that all inputs are there and that their shapes fit the configuration and each other.

    Args:
        config: configuration of the transformer.
        inputs: inputs of `WorldStereoTransformer.forward` by name.

    Returns:
        The keyframe that each reference is attached to; () without references.

    Raises:
        InputError: an input is missing or unexpected, or has a wrong shape.
    """
    hidden = inputs["hidden_states"]
    channels = config["in_channels"]
    if hidden.ndim != 5 or hidden.shape[1] != channels:
        raise InputError(f"hidden_states has shape {tuple(hidden.shape)}; (batch, {channels}, F, h, w) was expected.")
    batch, _, frames, height, width = hidden.shape
    if any(size % patch for size, patch in zip((frames, height, width), config["patch_size"], strict=True)):
        raise InputError(
            f"The latent of {frames}x{height}x{width} does not divide into patches of {config['patch_size']}."
        )
    _check_shape("timestep", inputs["timestep"], (batch,))
    text, image = inputs["encoder_hidden_states"], inputs["encoder_hidden_states_image"]
    _check_shape("encoder_hidden_states", text, (batch, None, config["text_dim"]))
    if image is not None:
        if config["image_dim"] is None:
            raise InputError("encoder_hidden_states_image was given, but this model has no image embedding.")
        _check_shape("encoder_hidden_states_image", image, (batch, None, config["image_dim"]))
    if config["added_kv_proj_dim"] is not None and (image is None or text.shape[1] != NUM_TEXT_TOKENS):
        raise InputError(
            f"This model needs an image embedding and exactly {NUM_TEXT_TOKENS} text tokens, zero padded; "
            f"there are {text.shape[1]} text tokens and {'no' if image is None else 'an'} image embedding."
        )
    _check_control(config, inputs, batch, frames, height, width)
    return _check_references(config, inputs, batch, frames, height, width)


def _check_control(config: Mapping[str, Any], inputs: Mapping[str, Any], b: int, F: int, h: int, w: int) -> None:
    control = config["controlnet_cfg"]
    if not control:
        return
    if inputs["render_latent"] is None or inputs["render_mask"] is None:
        raise InputError("This model has a control branch: render_latent and render_mask are needed.")
    _check_shape("render_latent", inputs["render_latent"], (b, None, F, h, w))
    _check_shape("render_mask", inputs["render_mask"], (b, 1, None, 8 * h, 8 * w))
    plucker, channels = inputs["camera_embedding"], control.get("add_channels", 1) - 1
    if (plucker is None) != (channels == 0):
        state = "missing" if plucker is None else "given"
        raise InputError(f"camera_embedding is {state} and the control branch takes {channels} channels of it.")
    if plucker is not None:
        _check_shape("camera_embedding", plucker, (b, channels, inputs["render_mask"].shape[2], 8 * h, 8 * w))
    layout, channels = inputs["layout"], control.get("layout_channels", 0)
    if (layout is None) != (channels == 0):
        state = "missing" if layout is None else "given"
        raise InputError(f"layout is {state} and the control branch takes {channels} channels of it.")
    if layout is not None:
        _check_shape("layout", layout, (b, channels, F, h, w))


def _check_references(
    config: Mapping[str, Any], inputs: Mapping[str, Any], b: int, F: int, h: int, w: int
) -> tuple[int, ...]:
    pose_channels = 7 if not config["controlnet_cfg"] else config["controlnet_cfg"].get("camera_embedding_dim", 7)
    if inputs["camera_qt"] is not None:
        _check_shape("camera_qt", inputs["camera_qt"], (b, F, pose_channels))
    latent, index = inputs["reference_latent"], inputs["ref_index"]
    if latent is None or latent.shape[2] == 0:
        return ()
    _check_shape("reference_latent", latent, (b, config["in_channels"], None, h, w))
    num_references = latent.shape[2]
    if index is None:
        raise InputError(
            f"{num_references} references were given without ref_index, the keyframes they are attached to."
        )
    _check_shape("ref_index", index, (num_references,))
    attached = [int(i) for i in index]
    if min(attached) < 0 or max(attached) > F - 2:
        raise InputError(f"ref_index is {attached}; with {F} keyframes its values must be in 0..{F - 2}.")
    if inputs["camera_qt_ref"] is not None:
        _check_shape("camera_qt_ref", inputs["camera_qt_ref"], (b, num_references, pose_channels))
    elif inputs["camera_qt"] is not None:
        raise InputError("camera_qt was given without camera_qt_ref; the references need cameras as well.")
    return tuple(i + 1 for i in attached)


def _check_shape(name: str, tensor: torch.Tensor, shape: tuple[int | None, ...]) -> None:
    """Compares the shape of an input with the expected one, in which None is any size."""
    actual = tuple(tensor.shape)
    if len(actual) != len(shape) or any(size not in (None, n) for n, size in zip(actual, shape, strict=True)):
        expected = ", ".join("any" if size is None else str(size) for size in shape)
        raise InputError(f"{name} has shape {actual}; ({expected}) was expected.")
