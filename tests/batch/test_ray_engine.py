"""A cluster of two local Ray nodes: the same results as the local engine's, also when a worker is killed."""

import json
import os
import shutil
import signal
import tempfile
from pathlib import Path

import pytest
from helpers.batch import InProcessEngine, here  # noqa: F401 (a fixture)
from helpers.textured_wall import textured_wall_views

from worldstereo_ros import __version__
from worldstereo_ros.batch import read_job_list, run_batch
from worldstereo_ros.batch.ray_engine import RayEngine, check_address
from worldstereo_ros.cli.batch_jobs import setup
from worldstereo_ros.io.posed_sequences import write_sequence
from worldstereo_ros.utils.errors import InputError

OBJECT_STORE_BYTES = 80 * 2**20


@pytest.mark.parametrize("address", ["here", "host:", ":6379", "host:99999", "ray://host:10001", "host:port"])
def test_addresses_of_another_form_are_refused(address):
    with pytest.raises(InputError, match="HOST:PORT of a cluster's head"):
        check_address(address)


def test_an_address_where_nothing_answers_is_refused():
    pytest.importorskip("ray", reason="Ray is not installed")
    with pytest.raises(InputError, match=r"No Ray cluster answers at 127\.0\.0\.1:1 "):
        RayEngine(None, workers=1, address="127.0.0.1:1")  # type: ignore[arg-type]


def add_node(nodes, attempts=3):
    """Adds a node with one core. Ray gives up after 30 s, which a busy machine may need."""
    for attempt in range(attempts):
        try:
            nodes.add_node(num_cpus=1, object_store_memory=OBJECT_STORE_BYTES, include_dashboard=False)
            return
        except Exception as error:
            if attempt == attempts - 1 or "timed out during startup" not in str(error):
                raise


@pytest.fixture
def cluster(monkeypatch):
    """The address of a cluster of two nodes with one core each."""
    pytest.importorskip("ray", reason="Ray is not installed")
    from ray.cluster_utils import Cluster

    folder = tempfile.mkdtemp(prefix="pytest-ray-")  # short: the path of a socket has at most 107 characters
    monkeypatch.setenv("RAY_TMPDIR", folder)
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    nodes = Cluster()
    try:
        while len(nodes.list_all_nodes()) < 2:
            add_node(nodes)
        yield nodes.address
    finally:
        nodes.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


class KilledOnce(RayEngine):
    """Kills the process that got the second job, while it runs it."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.nodes, self.submitted = set(), 0

    def submit(self, worker, job):
        import ray

        where = self._actors[worker].__ray_call__.remote(
            lambda actor: (os.getpid(), ray.get_runtime_context().get_node_id())
        )
        process, node = ray.get(where)
        super().submit(worker, job)
        self.nodes.add(node)
        self.submitted += 1
        if self.submitted == 2:
            os.kill(process, signal.SIGKILL)


@pytest.mark.timeout(600)
def test_two_nodes_give_what_one_process_gives_and_lose_no_job(cluster, here, monkeypatch):  # noqa: F811
    write_sequence(here / "wall", textured_wall_views())
    (here / "jobs.yaml").write_text("""
settings: {model: geometric}
sources: [{source: wall, size: 64x48}]
paths: [{path: right, views: 1}, {path: left, views: 1}]
seeds: [0, 1]
""")
    listed = read_job_list(
        here / "jobs.yaml", presets=("left", "right"), expand_worlds=list, check_size=len, version=__version__
    )
    engines = []

    def ray_engine(spec):
        engines.append(KilledOnce(spec, workers=2, address=cluster))
        return engines[0]

    def run(out, make_engine):
        options = {"setup": setup, "settings": listed.settings, "base": here, "workers": 2}
        return run_batch(listed.jobs, here / out, make_engine=make_engine, **options)

    assert run("ray", ray_engine).counts == {"done": 4, "failed": 0, "pending": 0}
    assert run("single", InProcessEngine).counts["done"] == 4

    def entries(out):
        return {job["name"]: job for job in json.loads(Path(out, "manifest.json").read_text())["jobs"]}

    sums = {name: job["sha256"] for name, job in entries("ray").items()}
    assert sums == {name: job["sha256"] for name, job in entries("single").items()}
    assert sorted(job["attempts"] for job in entries("ray").values()) == [1, 1, 1, 2]
    assert len(engines[0].nodes) == 2
