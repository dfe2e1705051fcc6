"""manifest.json of a batch: which jobs there are, how each ended, and with what it can be checked."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from worldstereo_ros.batch.jobs import DONE, FAILED, PENDING, Job, JobReport
from worldstereo_ros.utils.atomic_files import write_json
from worldstereo_ros.utils.errors import InputError

MANIFEST_FILE = "manifest.json"
FORMAT = 1
# A batch has thousands of jobs; what is not in the manifest yet is in the folders of the jobs.
WRITE_PERIOD_S = 2.0
MAX_WRITING_SHARE = 0.05  # of the time
MAX_BYTES = 512 * 2**20


def read_manifest(path: Path) -> dict[str, Any] | None:
    """Reads a manifest; None if there is none.

    Raises:
        InputError: it is damaged, or another file has its name.
    """
    if not path.exists():
        return None
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ValueError("it is too large")
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["worldstereo_batch"] != FORMAT or not isinstance(content["jobs"], list):
            raise ValueError("it has another format")
        for job in content["jobs"]:
            if not isinstance(job["name"], str) or not isinstance(job["attempts"], int):
                raise ValueError("an entry of its jobs is damaged")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(
            f"{path} is no manifest of a batch ({error}). Move it away to start anew (finished jobs are found by their "
            "folders), or choose another --out."
        ) from None
    return dict(content)


def read_run(path: Path) -> str:
    """The random name of the run that a manifest is of; empty if it cannot be read."""
    try:
        content = read_manifest(path)
    except InputError:
        return ""
    return "" if content is None else str(content.get("run", ""))


class Manifest:
    """The manifest of a run.

    Args:
        path: file to write.
        jobs: all jobs, also those that are done already.
        description: what is written beside them: version, settings, engine, workers, run.
        earlier: the manifest that an earlier run left.
    """

    def __init__(
        self, path: Path, jobs: Sequence[Job], description: dict[str, Any], earlier: dict[str, Any] | None = None
    ) -> None:
        self.path = path
        attempts = {job["name"]: job["attempts"] for job in (earlier or {}).get("jobs", [])}
        self._description = {"worldstereo_batch": FORMAT, **description, "started": _now()}
        self._entries: dict[str, dict[str, Any]] = {
            job.name: {
                "name": job.name, "status": PENDING, "seconds": None, "attempts": attempts.get(job.name, 0),
                "error": None, "sha256": None, "files": None, "notes": [], "source": job.source, "path": job.path,
                "seed": job.seed, "fingerprint": job.fingerprint,
            }
            for job in jobs
        }  # fmt: skip
        self._next_write = 0.0

    def begin(self, job: Job) -> None:
        """Counts an attempt."""
        self._entries[job.name]["attempts"] += 1

    def describe(self, **more: Any) -> None:
        """Adds to the description."""
        self._description |= more

    def enter(self, job: Job, report: JobReport) -> None:
        """Records how a job ended."""
        self._entries[job.name].update(
            status=report.status,
            seconds=report.seconds,
            error=report.error or None,
            sha256=report.sha256 or None,
            files=report.files or None,
            notes=list(report.notes),
        )

    def end(self, job: Job, report: JobReport) -> None:
        """Records how a job ended; writes the file if that was a while ago."""
        self.enter(job, report)
        if time.monotonic() >= self._next_write:
            self.write()

    def attempts(self, job: Job) -> int:
        """How often a job was started, in earlier runs, too."""
        return int(self._entries[job.name]["attempts"])

    @property
    def counts(self) -> dict[str, int]:
        """Number of jobs by status."""
        found = Counter(entry["status"] for entry in self._entries.values())
        return {status: found[status] for status in (DONE, FAILED, PENDING)}

    def failed(self) -> dict[str, str]:
        """The sentences of the jobs that failed, by their names."""
        return {e["name"]: e["error"] or "" for e in self._entries.values() if e["status"] == FAILED}

    def write(self) -> None:
        """Writes the file, whole or not at all. Raises WriteError."""
        start = time.monotonic()
        counts = self.counts
        content = self._description | {"updated": _now(), "complete": not counts[PENDING], "counts": counts}
        write_json(self.path, content | {"jobs": list(self._entries.values())})
        end = time.monotonic()
        self._next_write = end + max(WRITE_PERIOD_S, (end - start) / MAX_WRITING_SHARE)


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
