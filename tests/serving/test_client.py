"""The client of a server: what it is made with is checked at once, not by HTTP's own errors at the first request."""

import pytest

from worldstereo_ros.serving.client import ServeClient, UnreachableError
from worldstereo_ros.utils.errors import InputError

TOKEN = "a-token-of-thirty-two-characters"
UNREACHABLE_URL = "http://127.0.0.1:1"


def test_a_token_as_it_is_read_from_a_file_may_end_with_a_line_break():
    client = ServeClient(UNREACHABLE_URL, f"{TOKEN}\n", "robot-7")
    with pytest.raises(UnreachableError, match="cannot be reached"):
        client.health()


@pytest.mark.parametrize(("token", "robot", "sentence"), [
    ("two\nlines", "robot-7", "no printable ASCII"),
    ("\u20ac" * 20, "robot-7", "no printable ASCII"),
    (TOKEN, "../robot", "robot id '../robot' is invalid"),
    (TOKEN, "", "robot id '' is invalid"),
])  # fmt: skip
def test_a_token_or_an_id_that_cannot_be_sent_is_refused(token, robot, sentence):
    with pytest.raises(InputError, match=sentence):
        ServeClient(UNREACHABLE_URL, token, robot)
