from __future__ import annotations

import io
import json
import sys
import time
from typing import Any

import pytest

from appliance.api.runs import parse_frame
from appliance.cli.support.output import (
    encode_json,
    plain,
    print_bytes,
    print_facts,
    print_line,
    print_table,
    print_text,
    say,
)
from appliance.cli.support.progress import Display, ProgressMeter
from appliance.formats.core.text import is_visible


def test_text_of_others_cannot_drive_the_terminal() -> None:
    assert plain("Ada\x1b[31m\nB\x07\u202e") == "Ada\\x1b[31m\\nB\\x07\\u202e"
    assert plain("Zoë, 数据") == "Zoë, 数据"
    assert plain(None) == "-"


def test_no_way_of_printing_drives_the_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    hostile = "a\x1b]0;x\x07b\x9b2Jc\u202ed\u3164e\U000e0041\tf"
    print_line(f"{hostile}\n{hostile}")
    print_text(hostile)
    say(hostile)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    print_bytes(hostile.encode())
    told = capsys.readouterr()
    assert (told.out + told.err).count("\\x1b]0;x\\x07b\\x9b2Jc\\u202ed\\u3164e\\U000e0041\tf") == 5
    assert not set("\x1b\x07\x9b\u202e\u3164\U000e0041") & set(told.out + told.err)


def test_json_has_the_same_value_and_only_visible_characters() -> None:
    value = {"text": "a\x1bb\x7fc\x9bd\u202ee\U000e0041f", "Zoë": ["数据", 1]}
    text = encode_json(value, indent=2)
    assert json.loads(text) == value and is_visible(text.replace("\n", ""))
    assert "数据" in text and "\\u202e" in text and "\\udb40\\udc41" in text
    assert encode_json({"b": 1, "a": "é"}) == '{"a": "é", "b": 1}'


def test_columns_stand_below_one_another(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("run", "status"), [("r-000001", "sealed"), ("r-2", None)])
    assert capsys.readouterr().out.splitlines() == ["run       status", "r-000001  sealed", "r-2       -"]


def test_a_label_drives_no_terminal_and_keeps_its_indentation(capsys: pytest.CaptureFixture[str]) -> None:
    print_facts([("  action", "enrol"), ("  a\x1b[2J\u202eb", "x")])
    first, second = capsys.readouterr().out.splitlines()
    assert (first.index("enrol"), second) == (len("  a\\x1b[2J\\u202eb") + 3, "  a\\x1b[2J\\u202eb:  x")


def test_facts_stand_below_one_another_and_a_long_text_is_indented(capsys: pytest.CaptureFixture[str]) -> None:
    print_facts([("a", "one"), ("longer", "two\nthree"), ("none", None)])
    assert capsys.readouterr().out.splitlines() == ["a:       one", "longer:  two", "         three", "none:    -"]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_on_a_terminal_one_line_moves() -> None:
    stream = Terminal()
    meter = ProgressMeter("trains", 4, "steps", stream)
    meter._drawn = -1.0
    meter.set(2, "loss 0.5")
    meter.close()
    text = stream.getvalue()
    assert text.startswith("\r\x1b[K[############............] trains: 2 of 4 steps, loss 0.5")
    assert text.endswith("\n") and text.count("\n") == 1


def test_without_a_terminal_lines_are_plain_and_few() -> None:
    stream = io.StringIO()
    meter = ProgressMeter("trains", 1000, "steps", stream)
    for step in range(1, 1001):
        meter.set(step)
    meter.close()
    assert stream.getvalue() == "trains: 1000 of 1000 steps\n"


def test_the_estimate_counts_from_the_first_step() -> None:
    meter = ProgressMeter("trains", 10, "steps", io.StringIO())
    meter._began -= 1000  # a slow start
    meter.set(1)
    assert meter.left_s() is None
    meter._began -= 8
    meter.set(5)
    assert meter.left_s() == pytest.approx(10, rel=0.1)
    assert "about 10 s left" in meter.text()


def take(display: Display, status: str, frames: list[dict[str, Any]]) -> None:
    display.take(status, [parse_frame(frame) for frame in frames])


def test_a_run_is_told_in_stages(capsys: pytest.CaptureFixture[str]) -> None:
    display = Display("r-000001")
    step = {"frame": "step", "step": 2, "steps": 2, "loss": 0.25, "seconds": 2.0, "tokens": 10}
    display.take("queued", [])
    take(display, "queued", [{"frame": "waiting", "on": "slurm", "state": "job 7: PENDING (Resources)\x1b[2J"}])
    take(
        display,
        "running",
        [{"frame": "started", "sandbox_probes": {"tcp": "refused"}, "layers": {"seccomp": True, "landlock": False}}],
    )
    take(display, "running", [step, {"frame": "unknown"}])
    take(display, "trained", [{"frame": "progress", "done": 5, "total": 5, "tokens": 300, "seconds": 1.5}])
    take(display, "trained", [{"frame": "evaluating", "set": "harness-colours"}] * 2)
    display.take("sealed", [])
    assert capsys.readouterr().err.splitlines() == [
        "r-000001: waits for its turn.",
        "r-000001: job 7: PENDING (Resources)\\x1b[2J.",
        "r-000001: the worker is in its sandbox: 1 layers, without landlock, which policy accepts; "
        "1 of 1 attempts to break out were refused.",
        "trains: 2 of 2 steps, loss 0.250, 5 tokens a second",
        "evaluates: 5 of 5 rows, 200 tokens a second",
        "r-000001: is evaluated on harness-colours.",
        "r-000001: sealed.",
    ]


def test_who_follows_again_is_told_no_time_left_from_steps_that_came_in_at_once() -> None:
    display = Display("r-000001")
    steps = [{"frame": "step", "step": n, "steps": 100, "loss": "0.5"} for n in range(1, 41)]
    take(display, "running", steps)
    meter = display._meter
    assert meter is not None and meter.left_s() is None
    take(display, "running", [{"frame": "step", "step": 41, "steps": 100, "loss": "0.5"}])
    left, since = meter.left_s(), meter._began
    assert left is not None and meter._begun_at == 40 and since <= time.monotonic()


def test_of_a_private_run_neither_loss_nor_pace_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    display = Display("r-000001")
    take(display, "running", [{"frame": "step", "step": 2, "steps": 2, "loss": None, "seconds": "0.000", "tokens": 10}])
    display.close()
    assert capsys.readouterr().err.splitlines()[-1] == "trains: 2 of 2 steps, private, pace not measured"
