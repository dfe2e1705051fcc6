"""Packages networks that are trained in runs of their own: the stereo refiner and the point maps, in bfloat16."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from worldstereo_ros.models.checkpoints.loading import BASE_STEM, load_image_autoencoder
from worldstereo_ros.models.checkpoints.parameters import check_finite, parameter_dtype
from worldstereo_ros.models.checkpoints.saving import save_weights, write_json
from worldstereo_ros.models.checkpoints.weights import open_weights, read_json
from worldstereo_ros.models.depth_network import load_depth_network
from worldstereo_ros.models.pointmaps.model import AUTOENCODER_FOLDER, NETWORK_FOLDER, load_pointmap_model
from worldstereo_ros.models.pointmaps.refiner import load_refiner_model
from worldstereo_ros.models.stereo_refiner import load_stereo_refiner
from worldstereo_ros.pipelines.pointmaps.refinement import WITHOUT_PRIOR_FOLDER
from worldstereo_ros.utils.errors import InputError
from worldstereo_ros.weights.bundled import DEFAULT_MODEL, bundled_folder

SHARD_BYTES = 16_000_000  # of one file


@dataclass(frozen=True)
class SeparateNetwork:
    """A network with a training run of its own.

    Attributes:
        kinds: classes of its first part, by which a folder of it is known, and for each the folders of its parts; "" is
            the network's own.
        max_bytes: maximum size of its files together.
        load: loads it from its folder in a package (folder, package), as a check.
        prior: whether it was trained to refine a prior, by the configuration of its first part; without such an entry
            it was.
    """

    kinds: dict[str, tuple[str, ...]]
    max_bytes: int
    load: Callable[[Path, Path], object]
    prior: bool = True

    def parts(self, folder: Path) -> tuple[str, ...] | None:
        """Folders of the parts of the network in a folder; None if there is none. Raises CheckpointError."""
        for kind, parts in self.kinds.items():
            file = folder / parts[0] / "config.json"
            config = read_json(file) if file.is_file() else {}
            if config.get("_class_name") == kind and bool(config.get("prior", True)) == self.prior:
                return parts
        return None


def _load_pointmaps(folder: Path, package: Path) -> object:
    if not (folder / AUTOENCODER_FOLDER).is_dir():
        return load_refiner_model(folder)
    autoencoder = package / "base" / "vae"
    if not autoencoder.is_dir():
        autoencoder = bundled_folder(DEFAULT_MODEL) / "base" / "vae"
    depth = package / "base" / "depth"
    if not depth.is_dir():
        depth = bundled_folder(DEFAULT_MODEL) / "base" / "depth"
    images = load_image_autoencoder(autoencoder, torch.device("cpu"), torch.float32)
    return load_pointmap_model(folder, images, depth_network=load_depth_network(depth))


# By the name of their folder in `base`.
NETWORKS = {
    "stereo": SeparateNetwork({"StereoRefiner": ("",)}, 5_000_000, lambda folder, _: load_stereo_refiner(folder)),
    "pointmaps": SeparateNetwork(
        {"PointmapNetwork": (NETWORK_FOLDER, AUTOENCODER_FOLDER), "PointmapRefiner": (NETWORK_FOLDER,)},
        14_000_000,
        _load_pointmaps,
    ),
    WITHOUT_PRIOR_FOLDER: SeparateNetwork(
        {"PointmapNetwork": (NETWORK_FOLDER, AUTOENCODER_FOLDER)}, 14_000_000, _load_pointmaps, prior=False
    ),
}


def find_networks(run: Path) -> dict[str, Path]:
    """Folders of the networks of `NETWORKS` in a run or a package, by name; `run` itself may be one.

    Raises:
        CheckpointError: a configuration is damaged.
    """
    found = {}
    for name, network in NETWORKS.items():
        for folder in (run / "base" / name, run):
            if network.parts(folder) is not None:
                found[name] = folder
                break
    return found


def package_networks(run: Path, out: Path) -> dict[str, int]:
    """Puts the networks of a run into a package, in the place of earlier ones; all else in the package stays.

    Args:
        run: folder of a run of `worldstereo train stereo` or `worldstereo train pointmaps`.
        out: folder of a package, such as that of the bundled weights, or one that does not exist yet.

    Returns:
        Size in bytes of each network.

    Raises:
        InputError: the run has no such network, a network is too large, or `out` has other files.
        CheckpointError: weights are missing or damaged.
    """
    found = find_networks(run)
    if not found:
        raise InputError(
            f"{run} has no network of {' or '.join(NETWORKS)}; the folder of a `worldstereo train` run was expected."
        )
    if out.exists() and any(out.iterdir()) and not (out / "base").is_dir():
        raise InputError(f"{out} has files and is not a package; give one, or a folder that does not exist yet.")
    (out / "base").mkdir(parents=True, exist_ok=True)
    sizes = {}
    work = Path(tempfile.mkdtemp(prefix=".networks.", suffix=".partial", dir=out / "base"))
    try:
        for name, folder in found.items():  # all are checked before any is replaced
            sizes[name] = write_network(name, folder, work / name, out)
        for name in found:
            replace_folder(work / name, out / "base" / name, work / f"{name}.old")
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return sizes


def write_network(name: str, source: Path, target: Path, package: Path) -> int:
    """Writes a network of `NETWORKS` in bfloat16 and loads it.

    Args:
        name: which.
        source: its folder.
        target: folder to write, which does not exist yet.
        package: package whose other parts it will be loaded with.

    Returns:
        Size in bytes.

    Raises:
        InputError: it is too large.
        CheckpointError: weights are missing or damaged.
    """
    network = NETWORKS[name]
    for part in network.parts(source) or ():
        copy_in_bfloat16(source / part, target / part, BASE_STEM)
    files = [file for file in target.rglob("*") if file.is_file()]
    size = sum(file.stat().st_size for file in files)
    if size > network.max_bytes:
        raise InputError(
            f"The network {name} takes {size / 1e6:.2f} MB; at most {network.max_bytes / 1e6:g} MB are allowed. Train "
            "a smaller one."
        )
    for file in files:
        file.chmod(0o644)  # safetensors writes files that only their owner can read
    network.load(target, package)
    return size


def copy_in_bfloat16(source: Path, target: Path, stem: str | None, config: str = "config.json") -> None:
    """Copies a configuration and, if `stem` is given, the weights in bfloat16; norms stay in float32.

    Raises:
        CheckpointError: files are missing or damaged, or weights are not finite.
    """
    target.mkdir(parents=True, exist_ok=True)
    write_json(target / config, read_json(source / config))
    if stem is None:
        return
    weights = open_weights(source, stem)
    tensors = {}
    for name, tensor in weights.read(list(weights.tensors)):
        packed = check_finite(tensor, name, weights.tensors[name]).to(parameter_dtype(name, torch.bfloat16))
        tensors[name] = check_finite(packed, name, weights.tensors[name])
    save_weights(target, stem, tensors, max_shard_bytes=SHARD_BYTES)


def replace_folder(new: Path, out: Path, old: Path) -> None:
    """Moves a folder to the place of another, which is moved to `old`; if that fails, all is as before."""
    if out.exists():
        out.rename(old)
    try:
        new.rename(out)
    except BaseException:
        if old.exists():
            old.rename(out)
        raise
