"""Progress of a worker is untrusted: its memory is bounded, and it cannot write to another stream."""

from __future__ import annotations

import json

import pytest

from appliance.errors import RateLimited
from appliance.workflows.core.progress import _KEPT_BYTES, _KEPT_FRAMES, _KEPT_OF_ONE, _KEPT_STREAMS, Progress


def test_a_stream_keeps_its_last_frames_within_a_number_and_a_size() -> None:
    progress = Progress()
    for number in range(_KEPT_FRAMES + 10):
        progress.publish("many", {"frame": "progress", "done": number})
    for number in range(20):
        progress.publish("large", {"frame": "progress", "done": number, "text": "x" * (1 << 20)})
    many, large = progress.read("many"), progress.read("large")
    assert len(many.frames) == _KEPT_FRAMES and many.frames[-1]["seq"] == _KEPT_FRAMES + 9
    assert [frame["done"] for frame in large.frames] == [17, 18, 19]
    assert large.next == 20 and len(json.dumps(list(large.frames))) <= _KEPT_BYTES


def test_a_worker_does_not_number_its_frames() -> None:
    progress = Progress()
    progress.publish("run", {"frame": "progress", "seq": "last"})
    assert progress.read("run").frames[0]["seq"] == 0


def test_streams_that_were_only_asked_for_never_take_the_place_of_work_or_of_a_persons_result() -> None:
    progress = Progress()
    progress.open("look:rita:one", "rita")
    progress.end("look:rita:one", result={"rows": []})
    progress.publish("r-000001", {"frame": "step"})
    for number in range(3 * _KEPT_STREAMS):
        progress.read(f"r-9{number:05}")
    stream = progress.read_own("look:rita:one", "rita")
    assert stream is not None and stream.result == {"rows": []}
    assert len(progress.read("r-000001").frames) == 1
    assert len(progress.list_open()) <= _KEPT_STREAMS + 1


def test_a_stream_with_an_owner_is_read_by_nobody_else_and_asking_makes_none() -> None:
    progress = Progress()
    progress.open("look:rita:one", "rita")
    assert progress.read_own("look:rita:one", "olga") is None
    assert progress.read_own("check:olga:none", "olga") is None
    assert progress.list_open() == ("look:rita:one",)


def test_a_person_has_one_open_stream_of_a_kind_and_all_together_a_few() -> None:
    progress = Progress()
    first = progress.open_one("check", "olga", 2)
    progress.open_one("calibration", "olga", 2)
    with pytest.raises(RateLimited, match="check: expected one at a time for olga, got another; ask again when it"):
        progress.open_one("check", "olga", 2)
    progress.open_one("check", "vera", 2)
    with pytest.raises(RateLimited, match="check: expected at most 2 at a time, got one more; ask again"):
        progress.open_one("check", "oskar", 2)
    progress.end(first)
    progress.open_one("check", "oskar", 2)


def test_what_ended_of_one_person_is_bounded_and_the_oldest_goes_first() -> None:
    progress = Progress()
    keys = []
    for _ in range(_KEPT_OF_ONE + 3):
        keys.append(progress.open_one("check", "olga", 2))
        progress.end(keys[-1])
    kept = [key for key in keys if progress.read_own(key, "olga") is not None]
    assert kept == keys[3:]
