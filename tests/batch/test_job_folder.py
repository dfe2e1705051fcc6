"""Folders of results: complete, checked, never over files of others."""

import hashlib
import json
import subprocess
from dataclasses import replace

import pytest
from helpers.batch import jobs

from worldstereo_ros.batch import job_folder
from worldstereo_ros.utils.atomic_files import WriteError
from worldstereo_ros.utils.errors import InputError

(JOB,) = jobs("write")


def make(out, text="7", job=JOB):
    staged = job_folder.stage(out)
    (staged / "sub").mkdir()
    (staged / "sub" / "a.txt").write_text(text)
    return job_folder.publish(staged, out, job, 1.5, ("A note.",))


def test_a_published_job_is_found_again(tmp_path):
    report = make(tmp_path)
    assert job_folder.read_finished(tmp_path, JOB) == report
    assert (report.files, report.seconds, report.notes) == (1, 1.5, ("A note.",))
    sums = (tmp_path / JOB.name / "SHA256SUMS").read_bytes()
    assert report.sha256 == hashlib.sha256(sums).hexdigest()
    assert list((tmp_path / ".partial").iterdir()) == []


def test_the_checksums_are_those_that_sha256sum_checks(tmp_path):
    make(tmp_path)
    done = subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=tmp_path / JOB.name, capture_output=True, text=True)
    assert done.stdout == "sub/a.txt: OK\n"


def change(path):
    path.write_text(path.read_text() + " ")


@pytest.mark.parametrize("damage", [
    lambda folder: change(folder / "sub" / "a.txt"),
    lambda folder: (folder / "sub" / "a.txt").unlink(),
    lambda folder: change(folder / "SHA256SUMS"),
    lambda folder: (folder / "SHA256SUMS").unlink(),
    lambda folder: (folder / "job.json").unlink(),
    lambda folder: (folder / "job.json").write_text("{"),
    lambda folder: (folder / "job.json").write_text("[1]"),
])  # fmt: skip
def test_a_damaged_folder_is_not_taken_for_done(tmp_path, damage):
    make(tmp_path)
    damage(tmp_path / JOB.name)
    assert job_folder.read_finished(tmp_path, JOB) is None


def test_results_for_other_inputs_are_not_taken(tmp_path):
    make(tmp_path)
    assert job_folder.read_finished(tmp_path, replace(JOB, fingerprint="other")) is None


def test_checksums_of_files_outside_are_not_read(tmp_path):
    report = make(tmp_path)
    folder = tmp_path / JOB.name
    text = f"{hashlib.sha256(b'').hexdigest()}  ../../../etc/passwd\n"
    (folder / "SHA256SUMS").write_text(text)
    content = json.loads((folder / "job.json").read_text())
    content["sha256"] = hashlib.sha256(text.encode()).hexdigest()
    (folder / "job.json").write_text(json.dumps(content))
    assert report.files == 1
    assert job_folder.read_finished(tmp_path, JOB) is None


def test_earlier_results_are_replaced(tmp_path):
    first, second = make(tmp_path), make(tmp_path, "8")
    assert first.sha256 != second.sha256
    assert (tmp_path / JOB.name / "sub" / "a.txt").read_text() == "8"
    assert list((tmp_path / ".partial").iterdir()) == []


def test_files_of_others_are_not_replaced(tmp_path):
    make(tmp_path)
    (tmp_path / JOB.name / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match=r"thesis\.txt is in the way"):
        make(tmp_path, "8")
    assert (tmp_path / JOB.name / "sub" / "a.txt").read_text() == "7"


def test_folders_of_others_and_files_are_not_replaced(tmp_path):
    (tmp_path / JOB.name).mkdir(parents=True)
    make(tmp_path)  # an empty one is no loss
    job = replace(JOB, name="x/y")
    (tmp_path / "x" / "y").mkdir(parents=True)
    (tmp_path / "x" / "y" / "mine").write_text("")
    with pytest.raises(InputError, match="no job made it"):
        job_folder.check_free(tmp_path, job)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file is in the way"):
        job_folder.check_free(tmp_path, replace(JOB, name="file/y"))
    (tmp_path / "link").symlink_to(tmp_path / "x")
    with pytest.raises(InputError, match="link is in the way"):
        job_folder.check_free(tmp_path, replace(JOB, name="link/z"))


def test_a_job_that_wrote_nothing_is_an_error(tmp_path):
    with pytest.raises(WriteError, match="the job wrote no file"):
        job_folder.publish(job_folder.stage(tmp_path), tmp_path, JOB, 1, ())
