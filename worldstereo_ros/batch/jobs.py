"""What is handed to workers and what comes back. Light: the process that hands jobs out needs no torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

DONE, FAILED, PENDING = "done", "failed", "pending"


@dataclass(frozen=True)
class Job:
    """One source, one path, one seed.

    Attributes:
        name: folder of the results below the output folder, such as "hall/forward/seed_0".
        source: what is observed; keys are those of a job list, and `kind`: source, map, bag or world.
        path: what is imagined along; keys are those of a job list.
        seed: random seed.
        fingerprint: SHA-256 of all that the results depend on, see `with_fingerprint`.
    """

    name: str
    source: dict[str, Any]
    path: dict[str, Any]
    seed: int
    fingerprint: str = ""

    def with_fingerprint(self, settings: dict[str, Any], inputs: object, version: str) -> Job:
        """The job with the fingerprint of its source, path and seed, and of the arguments, which JSON can hold.

        Args:
            settings: those of all jobs.
            inputs: stamps of the files that the job reads.
            version: of this package.
        """
        content = [self.source, self.path, self.seed, settings, inputs, version]
        text = json.dumps(content, sort_keys=True, ensure_ascii=True)
        return replace(self, fingerprint=hashlib.sha256(text.encode()).hexdigest())


@dataclass(frozen=True)
class JobReport:
    """How a job ended.

    Attributes:
        status: `DONE` or `FAILED`.
        seconds: that it took in the worker; of a reused result, those of the run that made it.
        error: why it failed, a sentence.
        sha256: digest of its file of checksums, see `job_folder`.
        files: number of files in its folder that have a checksum.
        notes: sentences about what was assumed or left out.
        retry: it failed for another reason than its input, so that another attempt may succeed.
    """

    status: str
    seconds: float = 0.0
    error: str = ""
    sha256: str = ""
    files: int = 0
    notes: tuple[str, ...] = ()
    retry: bool = False


Note = Callable[[str], None]
RunJob = Callable[[Job, Path, Note], None]
"""run(job, folder, note): writes the results of a job into an empty folder, and calls note(sentence)."""
Setup = Callable[[dict[str, Any]], RunJob]
"""setup(settings): loads what all jobs share, once in each worker. A function of a module, so that it can be sent."""


@dataclass(frozen=True)
class WorkerSpec:
    """What a worker needs to know before its first job.

    Attributes:
        setup: loads what all jobs share.
        settings: its argument.
        base: folder that relative paths of jobs start from, absolute.
        out: output folder, absolute.
        run: random name of this run, which the manifest in `out` has, too.
        version: of this package where the jobs are handed out.
    """

    setup: Setup
    settings: dict[str, Any]
    base: str
    out: str
    run: str
    version: str
