"""Opens what people have on disk as a sequence of views: see docs/data.md for the layouts.

`open_sequence` looks at a path and says what it is; views are loaded when asked for. Rosbags: `bags.py`.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.imaging.codecs import ImageError
from worldstereo_ros.io.files import IMAGE_SUFFIXES, VIDEO_SUFFIXES, DatasetError, list_files, read_json, read_prompt
from worldstereo_ros.io.images import image_size
from worldstereo_ros.io.posed_sequences import ViewSequence, open_posed, read_intrinsics
from worldstereo_ros.io.video import video_size
from worldstereo_ros.io.worldstereo_examples import (
    Trajectory,
    camera_from_published,
    poses_from_published,
    read_trajectory,
)

__all__ = ["DatasetError", "Trajectory", "ViewSequence", "open_image", "open_posed", "open_sequence", "open_video"]

ASSUMED_FOV = np.radians(60.0)  # along the longer side, where nothing says what the camera was


def open_sequence(path: str | Path) -> ViewSequence:
    """Opens whatever `path` is: a posed sequence, a published WorldStereo example, a picture, a clip.

    Raises:
        DatasetError: nothing is there, it is none of these, or its files disagree.
    """
    path = Path(path)
    if not path.exists():
        raise DatasetError(f"There is nothing at {path}.")
    try:
        if path.is_file():
            if path.suffix.lower() in IMAGE_SUFFIXES:
                return open_image(path)
            if path.suffix.lower() in VIDEO_SUFFIXES:
                return open_video(path)
        if path.suffix.lower() in (".mcap", ".db3") or (path / "metadata.yaml").is_file():
            raise DatasetError(f"{path} is a recording: name its topics (`worldstereo imagine --bag ...`).")
        if path.is_file():
            raise DatasetError(
                f"{path} is no picture ({', '.join(IMAGE_SUFFIXES)}) and no clip ({', '.join(VIDEO_SUFFIXES)})."
            )
        if (path / "pano_bank").is_dir():
            return _open_panorama_bank(path)
        if (path / "image.png").is_file() and ((path / "camera.json").is_file() or (path / "renders").is_dir()):
            return _open_example(path)
        if (path / "poses.txt").is_file():
            return open_posed(path)
        if (path / "frames").is_dir() or any(p.suffix.lower() in VIDEO_SUFFIXES for p in path.iterdir()):
            return open_video(path)
        for name in ("image.png", "image.jpg"):
            if (path / name).is_file():
                return open_image(path / name)
    except ImageError as error:
        raise DatasetError(str(error)) from error
    raise DatasetError(
        f"{path} is no data set that is known. Expected frames/ with poses.txt and intrinsics.json, a WorldStereo "
        "example (image.png with camera.json or renders/, or pano_bank/), a picture, or a clip."
    )


# --- posed sequences -------------------------------------------------------------------------------------------------


# --- pictures and clips ----------------------------------------------------------------------------------------------


def _assumed_camera(width: int, height: int) -> Camera:
    focal = float(0.5 * max(width, height) / np.tan(0.5 * ASSUMED_FOV))
    return Camera(width, height, focal, focal, 0.5 * (width - 1), 0.5 * (height - 1))


def _unposed(path: Path, kind: str, frames: list[Path], size: tuple[int, int], folder: Path) -> ViewSequence:
    """A sequence without poses; the intrinsics from `folder`/intrinsics.json, or assumed."""
    known = (folder / "intrinsics.json").is_file()
    camera = read_intrinsics(folder / "intrinsics.json")[0] if known else _assumed_camera(*size)
    count = len(frames)
    return ViewSequence(
        path=path,
        kind=kind,
        cameras=(camera,) * count,
        poses=np.tile(np.eye(4), (count, 1, 1)),
        frames=tuple(frames),
        depths=(None,) * count,
        indices=np.arange(count, dtype=np.int64),
        stamps_ns=np.zeros(count, dtype=np.int64),
        posed=False,
        camera_known=known,
        prompt=read_prompt(folder / "prompt.json"),
    )


def open_image(
    image: str | Path, depth: str | Path | None = None, *, camera: Camera | None = None, depth_scale: float = 1000.0
) -> ViewSequence:
    """One picture, with depth where given or where `NAME_depth.png` (of image.png also depth.png) lies beside it.

    Args:
        image: picture file. Its camera is at the origin of the world.
        depth: 16-bit PNG of the same size.
        camera: intrinsics; else `intrinsics.json` beside the picture; else 60 degrees are assumed.
        depth_scale: a stored depth value divided by it is metres.
    """
    image = Path(image)
    try:
        size = image_size(image)
    except ImageError as error:
        raise DatasetError(str(error)) from error
    sequence = _unposed(image, "image", [image], size, image.parent)
    beside = [image.with_name(f"{image.stem}_depth.png")] + [image.with_name("depth.png")] * (image.stem == "image")
    depth = Path(depth) if depth is not None else next((p for p in beside if p.is_file()), None)
    if depth is not None and not depth.is_file():
        raise DatasetError(f"There is no depth image {depth}.")
    sequence = replace(sequence, depths=(depth,), depth_scale=depth_scale, metric=depth is not None)
    return sequence if camera is None else replace(sequence, cameras=(camera,), camera_known=True)


def open_video(path: str | Path) -> ViewSequence:
    """A clip, or a folder with `frames/` or one clip: no poses, no depth."""
    path = Path(path)
    if path.is_dir():
        frames = list_files(path / "frames", IMAGE_SUFFIXES)
        if frames:
            return _unposed(path, "video", frames, image_size(frames[0]), path)
        clips = list_files(path, VIDEO_SUFFIXES)
        if len(clips) != 1:
            raise DatasetError(f"{path} has {len(clips)} clips and no pictures in frames/; one clip was expected.")
        clip, folder = clips[0], path
    else:
        clip, folder = path, path.parent
    width, height, count, rate = video_size(clip)
    sequence = _unposed(path, "video", [clip] * count, (width, height), folder)
    return replace(sequence, stamps_ns=np.rint(np.arange(count) * (1e9 / rate)).astype(np.int64))


# --- published WorldStereo examples ----------------------------------------------------------------------------------


def _open_example(path: Path) -> ViewSequence:
    """image.png with camera.json (one path) or with renders/PATH/camera.json (several, with rendered clips)."""
    image, prompt = path / "image.png", read_prompt(path / "prompt.json")
    size = image_size(image)
    alone = (path / "camera.json").is_file()
    folders = [path] if alone else sorted(file.parent for file in path.glob("renders/*/camera.json"))
    if not folders:
        raise DatasetError(f"{path / 'renders'} has no folder with a camera.json.")
    paths = {folder.name: read_trajectory(folder, size, prompt=prompt) for folder in folders}
    first = next(iter(paths.values()))
    return ViewSequence(
        path=path,
        kind="worldstereo image" if alone else "worldstereo reconstruction",
        cameras=(first.camera,),
        poses=first.world_from_camera[:1],  # the picture is what the first camera sees
        frames=(image,),
        depths=(None,),
        indices=np.zeros(1, dtype=np.int64),
        stamps_ns=np.zeros(1, dtype=np.int64),
        prompt=prompt,
        trajectories=paths,
    )


def _open_panorama_bank(path: Path) -> ViewSequence:
    """pano_bank/images/*.png with pano_bank/cameras.json, and VIEW/PATH/camera.json with VIEW/start_frame.png."""
    bank = path / "pano_bank"
    cameras = read_json(bank / "cameras.json")
    images = list_files(bank / "images", IMAGE_SUFFIXES)
    if sorted(cameras) != [image.stem for image in images] or not images:
        raise DatasetError(f"{bank} has {len(images)} pictures and {len(cameras)} cameras; one each was expected.")
    poses, views = [], []
    for image in images:
        what, entry, size = f"view {image.stem} of {bank / 'cameras.json'}", cameras[image.stem], image_size(image)
        if not isinstance(entry, dict) or not {"extrinsic", "intrinsic"} <= set(entry):
            raise DatasetError(f"The {what} lacks `extrinsic` or `intrinsic`.")
        poses.append(poses_from_published(entry["extrinsic"], what)[0])
        views.append(camera_from_published(entry["intrinsic"], size, size, what))
    paths = {}
    for file in sorted(path.glob("*/*/camera.json")):
        start, name = file.parents[1] / "start_frame.png", f"{file.parents[1].name}/{file.parent.name}"
        known = start.is_file()
        size = image_size(start) if known else (views[0].width, views[0].height)
        paths[name] = replace(read_trajectory(file.parent, size, name=name), start_frame=start if known else None)
    return ViewSequence(
        path=path,
        kind="worldstereo panorama",
        cameras=tuple(views),
        poses=np.stack(poses),
        frames=tuple(images),
        depths=(None,) * len(images),
        indices=np.arange(len(images), dtype=np.int64),
        stamps_ns=np.zeros(len(images), dtype=np.int64),
        trajectories=paths,
        prompt=next((t.prompt for t in paths.values() if t.prompt), ""),
    )
