"""The folder of a job's results: complete or not there, with checksums.

Beside the results it holds SHA256SUMS (`sha256sum -c SHA256SUMS` checks it) and job.json: the job's fingerprint, the
seconds, the notes, and the digest of SHA256SUMS. A run that was killed finds by them what is done.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import shutil
from pathlib import Path
from typing import Any

from worldstereo_ros.batch.jobs import DONE, Job, JobReport
from worldstereo_ros.utils.atomic_files import WriteError, sync_folder, write_json, write_text
from worldstereo_ros.utils.errors import InputError

SUMS_FILE, JOB_FILE = "SHA256SUMS", "job.json"
STAGING_FOLDER = ".partial"  # in the output folder; what workers write until it is complete
_FORMAT = 1
_MAX_FILE_BYTES = 64 * 2**20  # of SUMS_FILE and JOB_FILE
_CHUNK_BYTES = 1 << 20


def stage(out: Path) -> Path:
    """Makes an empty folder for the results of a job. Raises WriteError."""
    folder = out / STAGING_FOLDER / secrets.token_hex(8)
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise WriteError(folder, error.strerror or str(error), code=error.errno) from error
    return folder


def remove_staged(out: Path) -> None:
    """Removes what killed workers left unfinished. Only for the process that has locked the output folder."""
    shutil.rmtree(out / STAGING_FOLDER, ignore_errors=True)


def check_free(out: Path, job: Job) -> None:
    """Checks that nothing is in the way of the job's folder but earlier results of a job.

    Raises:
        InputError: there is a file, or a folder with files that no job wrote.
    """
    final = out / job.name
    for folder in (*reversed(final.relative_to(out).parents), final.relative_to(out)):
        if (out / folder).is_symlink() or ((out / folder).exists() and not (out / folder).is_dir()):
            raise InputError(f"{out / folder} is in the way of the results; move it away, or choose another --out.")
    if not final.is_dir():
        return
    sums = _read_sums(final)
    strange = sorted(set(_files(final)) - set(sums or {}) - {SUMS_FILE, JOB_FILE})
    if sums is None and any(final.iterdir()):
        raise InputError(f"{final} is in the way: no job made it. Move it away, or choose another --out.")
    if strange:
        raise InputError(
            f"{final / strange[0]} is in the way: no job wrote it, and the folder is to be replaced. Move it away, or "
            "choose another --out."
        )


def publish(staged: Path, out: Path, job: Job, seconds: float, notes: tuple[str, ...]) -> JobReport:
    """Adds checksums and job.json to a staged folder and gives it its name; earlier results of the job are replaced.

    Raises:
        InputError: see `check_free`.
        WriteError: the disk refused something.
    """
    check_free(out, job)
    files = _files(staged)
    if not files:
        raise WriteError(out / job.name, "the job wrote no file")
    if unfit := [name for name in files if "\n" in name or "\\" in name]:
        raise WriteError(out / job.name, f"a file name has a line break or backslash: {unfit[0]!r}")
    text = "".join(f"{_sha256(staged / name)}  {name}\n" for name in files)
    write_text(staged / SUMS_FILE, text)
    digest = hashlib.sha256(text.encode()).hexdigest()
    content = {
        "worldstereo_job": _FORMAT, "name": job.name, "fingerprint": job.fingerprint, "sha256": digest,
        "seconds": round(seconds, 3), "notes": list(notes),
    }  # fmt: skip
    write_json(staged / JOB_FILE, content)
    final = out / job.name
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        if final.is_dir():
            final.rename(staged.with_name(staged.name + ".old"))
        staged.rename(final)
    except OSError as error:
        raise WriteError(final, error.strerror or str(error), code=error.errno) from error
    sync_folder(final.parent)
    shutil.rmtree(staged.with_name(staged.name + ".old"), ignore_errors=True)
    return JobReport(DONE, round(seconds, 3), sha256=digest, files=len(files), notes=notes)


def read_finished(out: Path, job: Job) -> JobReport | None:
    """The report of a job that is done already; None if it is not, or for other inputs, or if its files changed.

    All files are read, since a checksum is the only proof that they are whole.
    """
    folder = out / job.name
    try:
        content: Any = _read_json(folder / JOB_FILE)
        sums_text = _read_small(folder / SUMS_FILE)
        sums = _read_sums(folder)
        if (
            content["worldstereo_job"] != _FORMAT
            or content["fingerprint"] != job.fingerprint
            or content["sha256"] != hashlib.sha256(sums_text).hexdigest()
            or not sums
            or any(_sha256(folder / name) != digest for name, digest in sums.items())
        ):
            return None
        notes = tuple(str(note) for note in content["notes"])
        return JobReport(DONE, float(content["seconds"]), sha256=content["sha256"], files=len(sums), notes=notes)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _files(folder: Path) -> list[str]:
    """Files and links below a folder, as sorted POSIX paths relative to it."""
    found = []
    for parent, folders, files in os.walk(folder):
        links = [name for name in folders if (Path(parent) / name).is_symlink()]
        found += [(Path(parent) / name).relative_to(folder).as_posix() for name in (*files, *links)]
    return sorted(found)


def _read_sums(folder: Path) -> dict[str, str] | None:
    """The checksums of a folder by the names of its files; None if there are none, or one is of a file outside."""
    with contextlib.suppress(OSError, ValueError):
        sums = {}
        for line in _read_small(folder / SUMS_FILE).decode().splitlines():
            digest, _, name = line.partition("  ")
            if len(digest) != 64 or not name or name.startswith("/") or ".." in name.split("/"):
                return None
            sums[name] = digest
        return sums
    return None


def _read_small(path: Path) -> bytes:
    if path.stat().st_size > _MAX_FILE_BYTES:
        raise ValueError("too large")
    return path.read_bytes()


def _read_json(path: Path) -> Any:
    return json.loads(_read_small(path))


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
