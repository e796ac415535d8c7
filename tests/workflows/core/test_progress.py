"""What a worker says on the way is a stranger's: it takes no more memory, and no other place, than it is given."""

from __future__ import annotations

import json

from appliance.workflows.core.progress import _KEPT_BYTES, _KEPT_FRAMES, Progress


def test_a_stream_keeps_its_last_frames_within_a_number_and_a_size() -> None:
    progress = Progress()
    for number in range(_KEPT_FRAMES + 10):
        progress.publish("many", {"frame": "progress", "done": number})
    for number in range(20):
        progress.publish("large", {"frame": "progress", "done": number, "text": "x" * (1 << 20)})
    many, large = progress.read("many", 0, 0), progress.read("large", 0, 0)
    assert len(many.frames) == _KEPT_FRAMES and many.frames[-1]["seq"] == _KEPT_FRAMES + 9
    assert [frame["done"] for frame in large.frames] == [17, 18, 19]
    assert large.next == 20 and len(json.dumps(list(large.frames))) <= _KEPT_BYTES


def test_a_worker_does_not_number_its_frames() -> None:
    progress = Progress()
    progress.publish("run", {"frame": "progress", "seq": "last"})
    assert progress.read("run", 0, 0).frames[0]["seq"] == 0
