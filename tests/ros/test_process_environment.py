"""What a process sets up before it starts ROS."""

import os
import subprocess
import sys

import pytest
from helpers.paths import REPOSITORY

from worldstereo_ros.ros.process_environment import (
    LOG_VARIABLES,
    PROFILE_VARIABLES,
    log_arguments,
    set_transport_profile,
)


@pytest.fixture(autouse=True)
def no_settings(monkeypatch, tmp_path):
    for name in (*PROFILE_VARIABLES, *LOG_VARIABLES, "RMW_IMPLEMENTATION"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)


def test_profile_is_set_where_the_user_chose_none(monkeypatch):
    expected = str(REPOSITORY / "config" / "fastdds.xml")
    assert set_transport_profile() == expected
    assert [os.environ[name] for name in PROFILE_VARIABLES] == [expected] * 2


@pytest.mark.parametrize("name", PROFILE_VARIABLES)
def test_profile_of_the_user_is_kept(monkeypatch, name):
    monkeypatch.setenv(name, "/mine.xml")
    assert set_transport_profile() == "/mine.xml"
    assert sorted(variable for variable in PROFILE_VARIABLES if variable in os.environ) == [name]


def test_profile_in_the_working_folder_is_kept(tmp_path):
    (tmp_path / "DEFAULT_FASTRTPS_PROFILES.xml").write_text("<dds/>")
    assert set_transport_profile() == str(tmp_path / "DEFAULT_FASTRTPS_PROFILES.xml")
    assert not set(PROFILE_VARIABLES) & set(os.environ)


def test_other_middleware_has_no_profile(monkeypatch):
    monkeypatch.setenv("RMW_IMPLEMENTATION", "rmw_cyclonedds_cpp")
    assert set_transport_profile() == ""


def test_log_file_only_where_ros_is_set_up(monkeypatch, tmp_path):
    assert "--disable-external-lib-logs" in log_arguments()
    (tmp_path / ".ros").mkdir()
    assert log_arguments() == []
    monkeypatch.delenv("HOME")
    assert "--disable-external-lib-logs" in log_arguments()
    monkeypatch.setenv("ROS_LOG_DIR", str(tmp_path / "log"))
    assert log_arguments() == []


@pytest.mark.ros
@pytest.mark.parametrize("home", [True, False])
def test_node_starts_with_an_ascii_locale_and_writes_nothing_into_home(monkeypatch, tmp_path, home):
    """It fails to start for another reason, which it says in one line, before it loads a model."""
    if not home:
        monkeypatch.delenv("HOME")
    for name, value in {
        "LC_ALL": "C",
        "PYTHONUTF8": "0",
        "PYTHONCOERCECLOCALE": "0",
        "PYTHONIOENCODING": "ascii",
    }.items():
        monkeypatch.setenv(name, value)
    command = [
        sys.executable,
        "-m",
        "worldstereo_ros.ros.node",
        "--ros-args",
        "-p",
        "model:=modèle",
        "-r",
        "__node:=a b",
    ]
    process = subprocess.run(command, capture_output=True, timeout=120, cwd=REPOSITORY)
    error = process.stderr.decode(errors="replace")
    assert process.returncode == 1
    assert "worldstereo_node: ROS could not start the node" in error
    assert "Traceback" not in error
    assert not list(tmp_path.iterdir())
