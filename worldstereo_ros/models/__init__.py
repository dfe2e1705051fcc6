"""Torch modules: the WorldStereo transformer, its autoencoders, its schedulers, and their checkpoints.

Needs torch, diffusers, numpy and safetensors alone, so that it can be used without ROS and without the rest of the
package's dependencies.
"""

from worldstereo_ros.models.autoencoders.keyframe import KeyframeAutoencoder
from worldstereo_ros.models.checkpoints.config import VARIANTS, CheckpointConfig
from worldstereo_ros.models.checkpoints.hub import Checkpoint, find_checkpoint, list_variants
from worldstereo_ros.models.checkpoints.inspection import CheckpointReport, inspect_checkpoint
from worldstereo_ros.models.checkpoints.loading import load_autoencoder, load_transformer
from worldstereo_ros.models.checkpoints.weights import CheckpointError
from worldstereo_ros.models.schedulers import DMDScheduler, make_scheduler
from worldstereo_ros.models.worldstereo.correspondence import reference_points
from worldstereo_ros.models.worldstereo.transformer import WorldStereoTransformer

__all__ = [
    "VARIANTS",
    "Checkpoint",
    "CheckpointConfig",
    "CheckpointError",
    "CheckpointReport",
    "DMDScheduler",
    "KeyframeAutoencoder",
    "WorldStereoTransformer",
    "find_checkpoint",
    "inspect_checkpoint",
    "list_variants",
    "load_autoencoder",
    "load_transformer",
    "make_scheduler",
    "reference_points",
]
