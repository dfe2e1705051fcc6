"""The output of a round on a GPU: report, table, pictures, and the weights in a few tar files. Needs no GPU."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

MAX_FILES, MAX_FILE_BYTES = 8, 16 * 2**20  # of what comes back from a GPU machine
TAR_BYTES = 15_800_000  # of the files in a tar, which adds headers
REPORT, TABLE, PICTURES = "report.json", "report.md", "pictures.jpg"
MAX_PICTURE_WIDTH = 1600


def read_report(out: Path) -> dict[str, Any]:
    """The report so far; empty if there is none, or a cut-off one."""
    try:
        return json.loads((out / REPORT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def write_report(out: Path, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Changes the report, and writes it as JSON and as a page of tables; returns it."""
    out.mkdir(parents=True, exist_ok=True)
    report = {**read_report(out), **changes}
    _replace(out / REPORT, json.dumps(report, indent=1).encode())
    _replace(out / TABLE, page(report).encode())
    return report


def _replace(file: Path, content: bytes) -> None:
    part = file.with_name(f".{file.name}.part")
    part.write_bytes(content)
    part.replace(file)


def write_tars(package: Path, out: Path) -> list[Path]:
    """Writes a packaged checkpoint as `weights-1.tar`, `weights-2.tar` ..., to unpack into one folder.

    Raises:
        ValueError: a file is larger than a tar may be, or the tars, report, table and pictures are more than
            `MAX_FILES`.
    """
    files = sorted((file for file in package.rglob("*") if file.is_file()), key=lambda file: -file.stat().st_size)
    groups: list[list[Path]] = []
    sizes: list[int] = []
    for file in files:
        size = file.stat().st_size + 1024
        if size > TAR_BYTES:
            raise ValueError(f"{file.name} has {size} bytes; at most {TAR_BYTES} fit into a file that comes back")
        at = next((index for index, used in enumerate(sizes) if used + size <= TAR_BYTES), None)
        if at is None:
            groups.append([file])
            sizes.append(size)
        else:
            groups[at].append(file)
            sizes[at] += size
    if len(groups) + 3 > MAX_FILES:
        raise ValueError(f"the weights take {len(groups)} files; at most {MAX_FILES - 3} come back")
    written = []
    for number, group in enumerate(groups, start=1):
        target = out / f"weights-{number}.tar"
        part = target.with_name(f".{target.name}.part")
        with tarfile.open(part, "w") as tar:
            for file in group:
                tar.add(file, file.relative_to(package).as_posix())
        part.replace(target)
        written.append(target)
    for old in set(out.glob("weights-*.tar")) - set(written):
        old.unlink()
    return written


def write_pictures(logs: Path, out: Path) -> None:
    """Writes the validation images of all stages below each other."""
    import cv2
    import numpy as np

    images = [image for file in sorted(logs.glob("*.png")) if (image := cv2.imread(str(file))) is not None]
    if not images:
        return
    width = min(MAX_PICTURE_WIDTH, max(image.shape[1] for image in images))
    rows = []
    for image in images:
        if image.shape[1] > width:
            image = cv2.resize(image, (width, image.shape[0] * width // image.shape[1]), interpolation=cv2.INTER_AREA)
        rows.append(cv2.copyMakeBorder(image, 0, 8, 0, width - image.shape[1], cv2.BORDER_CONSTANT, value=(255,) * 3))
    ok, content = cv2.imencode(".jpg", np.concatenate(rows), [cv2.IMWRITE_JPEG_QUALITY, 88])
    if ok:
        _replace(out / PICTURES, content.tobytes())


def training_table(logs: Path, report: Mapping[str, Any]) -> dict[str, Any]:
    """Figures of every stage: steps, images a second, share of the card, validation at the start and at the end.

    Steps and seconds are sums over the periods of this round. The share of the card is counted for the stage finetune
    from the operations of a clip, where the check "training at full batch" has counted them.
    """
    from worldstereo_ros.training.logs import read_log

    figures = report.get("checks", {})
    flop = figures.get("training at full batch", {}).get("figures", {}).get("tflop_a_clip")
    rate = figures.get("device", {}).get("figures", {}).get("tflops")
    stages: dict[str, Any] = {}
    for file in sorted(logs.glob("*.jsonl")):
        lines = _lines(file)
        periods = read_log(file)
        if not periods:
            continue
        settings = periods[-1].header.get("settings", {})
        steps = sum(period.steps for period in periods)
        seconds = sum(period.seconds for period in periods)
        frames = 1 if file.stem in ("autoencoder", "depth") else settings.get("frames", 1)
        clips = steps * settings.get("batch", 1) / seconds if seconds else 0.0
        validations = [line for line in lines if any(name.startswith("validation_") for name in line)]
        stage: dict[str, Any] = {
            "steps": steps,
            "seconds": seconds,
            "batch": settings.get("batch"),
            "images_per_second": clips * frames,
            "new_clips": _mean(line["new_clips"] for line in lines if "new_clips" in line),
            "worlds": periods[-1].header.get("worlds"),
            "start": _metrics(validations[0]) if validations else {},
            "end": _metrics(validations[-1]) if validations else {},
            "log": lines,
        }
        if file.stem == "finetune" and flop and rate:
            stage["share_of_matrix_rate"] = flop * clips / rate
        stages[file.stem] = stage
    return stages


def _lines(file: Path) -> list[dict[str, Any]]:
    found = []
    for text in file.read_text(encoding="utf-8").splitlines():
        try:
            found.append(json.loads(text))
        except ValueError:  # the last line of a run that was cut off
            continue
    return found


def _metrics(line: Mapping[str, Any]) -> dict[str, Any]:
    return {name.removeprefix("validation_"): n for name, n in line.items() if name.startswith("validation_")}


def _mean(values: Any) -> float | None:
    found = list(values)
    return sum(found) / len(found) if found else None


def format_check(check: Mapping[str, Any]) -> str:
    """The line of one check."""
    figures = ", ".join(f"{name} {_short(value)}" for name, value in check.get("figures", {}).items())
    return f"{check['name']:<32} {check['status']:<8} {check['seconds']:6.1f} s  {check['message'] or figures}"


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    return f"{value / 1e9:.2f} G" if isinstance(value, int) and value > 10**8 else str(value)


def page(report: Mapping[str, Any]) -> str:
    """The report as a page of tables."""
    checks = report.get("checks", {})
    text = ["# A round on a GPU", "", f"State: {report.get('state', 'not finished')}."]
    if report.get("packaging_failed"):
        text.append(f"The last weights could not be packaged: {report['packaging_failed']}.")
    text += ["", "## Checks", "", "| check | result | seconds | |", "| --- | --- | --- | --- |"]
    for check in checks.values():
        figures = ", ".join(f"{name} {_short(value)}" for name, value in check["figures"].items())
        cells = (check["name"], check["status"], f"{check['seconds']:.1f}", check["message"] or figures)
        text.append(f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |")
    headings = ("stage", "steps", "minutes", "batch", "images/s", "new clips", "share of the matrix rate", "validation")
    text += ["", "## Training", "", f"| {' | '.join(headings)} |", f"|{' --- |' * len(headings)}"]
    for name, stage in report.get("training", {}).items():
        values = (f"{key} {_short(stage['start'].get(key))} to {_short(value)}" for key, value in stage["end"].items())
        new, share = stage.get("new_clips"), stage.get("share_of_matrix_rate")
        row = (
            name, str(stage["steps"]), f"{stage['seconds'] / 60:.1f}", str(stage["batch"]),
            f"{stage['images_per_second']:.0f}", "-" if new is None else f"{new:.0%}",
            "-" if share is None else f"{share:.1%}", ", ".join(values),
        )  # fmt: skip
        text.append(f"| {' | '.join(row)} |")
    if usage := report.get("gpu_usage"):
        text += ["", ", ".join(f"{name} {_short(value)}" for name, value in usage.items())]
    return "\n".join(text) + "\n"
