"""`worldstereo serve`: what is checked before anything is loaded; the server itself has tests/serving."""

from __future__ import annotations

import re
import socket

import pytest
from typer.testing import CliRunner

from worldstereo_ros.cli.main import app

TOKEN = "0123456789abcdef0123456789abcdef"


@pytest.fixture
def token(tmp_path):
    file = tmp_path / "token"
    file.write_text(TOKEN)
    file.chmod(0o600)
    return file


def run(*arguments):
    result = CliRunner().invoke(app, ["serve", *map(str, arguments)])
    return result.exit_code, re.sub(r"\s+", " ", result.output)


def test_options_are_checked_before_anything_is_loaded(token, tmp_path):
    short = tmp_path / "short"
    short.write_text("secret")
    for arguments, sentence in (
        (("--token-file", tmp_path / "no"), "does not exist. Make one with"),
        (("--token-file", short), "has a first line of 6 characters; 16 to 4096"),
        (("--token-file", token, "--engine", "local", "--replicas", 2), "--engine local is one replica"),
        (("--token-file", token, "--engine", "local", "--address", "auto"), "--engine local is one replica"),
        (("--token-file", token, "--tls-cert", token), "--tls-cert and --tls-key belong together"),
        (("--token-file", token, "--tls-cert", token, "--tls-key", token), "cannot be used for https"),
    ):
        status, text = run(*arguments)
        assert status == 1, text
        assert sentence in text
        assert TOKEN not in text


def test_a_port_that_is_taken_is_said(token):
    pytest.importorskip("uvicorn")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        status, text = run("--token-file", token, "--engine", "local", "--port", port)
    assert status == 1
    assert f"127.0.0.1:{port} cannot be listened on: Address already in use" in text


def test_without_ray_the_engine_local_is_named(token, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    status, text = run("--token-file", token)
    assert status == 1
    assert "Ray Serve is not installed. Install it with: pip install 'worldstereo_ros[serve]'" in text
