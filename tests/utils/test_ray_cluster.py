"""Connecting to Ray: what it raises, and what it restores."""

import signal

import pytest

from worldstereo_ros.utils.errors import InputError
from worldstereo_ros.utils.ray_cluster import connect_ray


def test_a_local_cluster_that_does_not_start_at_once_is_started_again():
    class Slow:
        starts, shutdowns = 0, 0

        def init(self, **options):
            assert options["address"] == "local"
            self.starts += 1
            if self.starts < self.after:
                raise RuntimeError("The current node timed out during startup.\nMore.")

        def shutdown(self):
            self.shutdowns += 1

    ray = Slow()
    ray.after = 2
    connect_ray(ray, "", 1)
    assert (ray.starts, ray.shutdowns) == (2, 1)
    ray.starts, ray.after = 0, 9
    with pytest.raises(
        InputError, match=r"could be started on this machine: The current node timed out during startup\."
    ):
        connect_ray(ray, "", 1)


def test_a_cluster_is_reached_at_its_address_and_handlers_of_signals_are_restored():
    class Cluster:
        def init(self, **options):
            self.options = options
            signal.signal(signal.SIGTERM, signal.SIG_IGN)

    ray, before = Cluster(), signal.getsignal(signal.SIGTERM)
    connect_ray(ray, "auto")
    assert ray.options["address"] == "auto"
    assert "num_cpus" not in ray.options
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "127.0.0.1:99999"])
def test_an_address_at_which_nothing_listens_is_told_at_once(address):
    with pytest.raises(InputError, match=f"No Ray cluster answers at {address} .*ray start --head"):
        connect_ray(None, address)
