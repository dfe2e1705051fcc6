"""What the diagnostics keep and log; no process runs."""

from worldstereo_ros.ros.node.diagnostics import MAX_LOG_KEYS, MAX_TEXT, NodeDiagnostics


def test_texts_of_any_length_are_shortened():
    """Messages quote frame ids, which a publisher may fill with megabytes that differ each time."""
    log = []
    diagnostics = NodeDiagnostics(log.append)
    for index in range(MAX_LOG_KEYS + 10):
        frame = chr(ord("a") + index % 26) * 100_000 + str(index)
        diagnostics.on_rejected("image", f"No transform from {frame}.")
        diagnostics.on_fault("image", ValueError(frame))
        diagnostics.warn(f"Ignored {frame}.", key=frame)
    assert log
    assert max(map(len, log)) <= MAX_TEXT + len("Unexpected error in ")
    assert max(map(len, diagnostics._logged_at)) <= MAX_TEXT + len("image:")
    statuses = diagnostics.statuses("/node", "active", {})
    assert max(len(item.value) for status in statuses for item in status.values) <= MAX_TEXT


def test_short_texts_are_kept_as_they_are():
    log = []
    NodeDiagnostics(log.append).on_rejected("image", "It has 5 pixels.")
    assert log == ["image: It has 5 pixels."]
