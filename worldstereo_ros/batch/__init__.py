"""Many jobs on many processes or machines: lists of jobs, workers, engines, and what is left of a run to continue from.

What a job does is given from outside (`worker.Setup`); `worldstereo batch` imagines views along paths.
"""

from worldstereo_ros.batch.job_list import JobList, read_job_list
from worldstereo_ros.batch.jobs import Job, JobReport, WorkerSpec
from worldstereo_ros.batch.manifest import Manifest
from worldstereo_ros.batch.runner import BatchRun, run_batch

__all__ = ["BatchRun", "Job", "JobList", "JobReport", "Manifest", "WorkerSpec", "read_job_list", "run_batch"]
