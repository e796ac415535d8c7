"""Whether vLLM answers as the appliance did when it judged an adapter: on held-out rows, and at the probe."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any

from appliance.domain.data.tasks import PREFERENCE
from appliance.errors import Unavailable
from appliance.ml.data.samples import Sample
from appliance.ml.evaluation import metrics
from appliance.ml.evaluation.sets import JudgedSet
from appliance.ml.inference.probe import CLOSE
from appliance.ml.inference.reading import Question
from appliance.ml.inference.request import Request
from appliance.ml.inference.score import find_branches
from appliance.ml.serving.engine import Done, Event
from appliance.ml.vllm.engine import Engine

MOST_ROWS = 256
"""Rows that are judged, spread evenly over the held-out ones."""
SLOT = "judged"

Report = Callable[[int, int], None]


def judge(engine: Engine, files: Mapping[str, bytes], probe: Mapping[str, Any], rows: JudgedSet, report: Report) -> Any:
    """What stands beside the appliance's own metrics: rows, loss and accuracy of the adapter, and how far the probe is
    off, as a share of its largest logit. Tampered where that is more than `CLOSE`."""
    engine.load(SLOT, files["adapter_config.json"], files["adapter_model.safetensors"], probe)
    try:
        places = choose_rows(len(rows.rows))
        samples = [rows.samples[place] for place in places]
        found: dict[str, Any] = {"rows": len(places)}
        if rows.about.task != PREFERENCE:
            found |= _losses(engine, samples, report)
        if rows.about.task == "classification":
            expected = [rows.rows[place].answer for place in places]
            answered = [_choose(engine, sample, rows.about.labels, report) for sample in samples]
            right = sum(one == other for one, other in zip(expected, answered, strict=True))
            found["accuracy"] = metrics.encode_metric(Fraction(right, len(expected)))
        return {**found, "probe_off": f"{engine.off[SLOT]:.6f}", "probe_within": f"{CLOSE:.6f}"}
    finally:
        engine.unload(SLOT)


def choose_rows(count: int) -> list[int]:
    """Of so many rows those that are judged, in order."""
    most = min(count, MOST_ROWS)
    return [place * count // most for place in range(most)]


def _losses(engine: Engine, samples: Sequence[Sample], report: Report) -> dict[str, str | int]:
    losses, tokens = [], 0
    for sample in samples:
        scores = engine.measure(SLOT, sample.ids)
        losses += [-scores[place] for start, stop in sample.spans for place in range(start, stop)]
        tokens += sample.trained_tokens
        report(1, len(sample.ids))
    total = math.fsum(losses)
    if not math.isfinite(total):
        raise Unavailable("evaluation: expected finite losses, got infinite ones or NaN", code="not-finite")
    return metrics.summarize_loss(total, tokens)


def _choose(engine: Engine, sample: Sample, labels: Sequence[str], report: Report) -> str:
    """The likeliest label, as a unit's classification has it; of equals the first."""
    chat = engine.base.chat
    prompt = list(sample.ids[: sample.spans[0][0]])
    branches = find_branches(chat.encode_all([chat.answer(label) for label in labels]))
    request = Request(messages=(), max_tokens=1, labels=tuple(labels))
    engine.take("row", SLOT, Question(request, prompt, branches=branches))
    events: list[Event] = []
    while not any(isinstance(event.told, Done | Exception) for event in events):
        events += engine.step()
    for event in events:
        if isinstance(event.told, Exception):
            raise event.told
    report(1, len(prompt))
    shares: dict[str, str] = json.loads("".join(event.told for event in events if isinstance(event.told, str)))
    return max(labels, key=lambda label: float(shares[label]))
