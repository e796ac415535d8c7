"""The bench of revocations counts streams that were running, by engine, and the slowest of each."""

from __future__ import annotations

from typing import Any

from appliance.domain.evaluation.quality import VLLM
from scripts.benches.revocation import Listener, Revoked, Stream, _rows
from scripts.soaking.deployment import BUILTIN


def test_the_rows_are_the_medians_the_ninety_ninth_and_the_slowest_of_each_revocation() -> None:
    found = [
        Revoked(0.1, {VLLM: [0.0, 0.2], BUILTIN: [0.3]}, {VLLM: [0.4, 0.5], BUILTIN: [0.6]}),
        Revoked(0.3, {VLLM: [0.0, 1.2], BUILTIN: []}, {VLLM: [0.4, 0.5], BUILTIN: [2.0]}),
    ]
    rows = list(_rows(found))
    told = {one.name: round(one.ours) for one in rows if not one.name.startswith("the same")}
    assert told["revocations"] == 2 and told["from the order to its entry, median"] == 300
    assert told["from the order to the last token of all streams, median"] == 1500
    assert told["from the order to the last gateway's entry that it unloaded, median"] == 2300
    assert told["gateways with vLLM: from the entry to a stream's last token, median of 4"] == 200
    bounded = [(round(one.ours), one.met) for one in rows if one.goal]
    assert bounded == [(1200, False), (300, True)], "a second, at 99 of 100 streams of each engine"


def test_a_stream_counts_while_it_runs_and_for_the_adapter_that_gave_it() -> None:
    listener: Any = object.__new__(Listener)
    listener.streams = []
    assert not listener.answers_by("sha256:a")
    stream = Stream("")
    listener._hear(stream, {"choices": [{"delta": {"role": "assistant"}}], "system_fingerprint": "sha256:a"})
    assert not listener.streams, "no token has come"
    listener._hear(stream, {"choices": [{"delta": {"content": "x"}}], "system_fingerprint": "sha256:a"})
    assert listener.answers_by("sha256:a") and not listener.answers_by("sha256:b")
    stream.ended = stream.latest
    assert not listener.answers_by("sha256:a")
