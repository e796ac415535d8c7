"""Where the plots of an adapter's quality have their marks: the template draws them as SVG, the style sheet colours."""

from __future__ import annotations

from collections.abc import Sequence

from appliance.domain.evaluation.calibration import Calibration
from appliance.domain.evaluation.evidence import Calibrations
from appliance.domain.releases.page.value import Judged
from appliance.web.console.core.page import Value

WIDTH, EDGE = 160.0, 6.0
"""Of a bar's drawing, and what stays free on both sides of it."""
SIDE = 100.0
"""Of the square that calibration is drawn in."""


class Bar(Value):
    """A gain with its interval beside zero, from the left."""

    zero: float
    start: float
    end: float
    gain: float


class Curve(Value):
    """Share right by mean confidence of the bins that hold answers, downwards from the top left."""

    points: tuple[tuple[float, float], ...]


class Plots(Value):
    """`gates` and `parts` go with the results and parts of the verdict; a gate that tested nothing has no bar."""

    gates: tuple[Bar | None, ...]
    parts: tuple[Bar, ...]
    adapter: Curve | None
    base: Curve | None


Span = tuple[str, str | None, str | None]


def plot_quality(judged: Judged | None, found: Calibrations | None) -> Plots:
    results, parts = ((), ()) if judged is None else (judged.results, judged.parts)
    tested = [(one.metric, (one.gain, one.lower, one.upper)) for one in results if one.gain is not None]
    bars = iter(_bars([(metric, (gain or "0", lower, upper)) for metric, (gain, lower, upper) in tested]))
    return Plots(
        gates=tuple(None if one.gain is None else next(bars) for one in results),
        parts=tuple(_bars([(one.gate, (one.gain, one.lower, one.upper)) for one in parts])),
        adapter=None if found is None else _curve(found.adapter),
        base=None if found is None else _curve(found.base),
    )


def _bars(spans: Sequence[tuple[str, Span]]) -> list[Bar]:
    """One scale for all spans of a key, so that bars of one unit can be compared; zero is on each."""
    reach: dict[str, list[float]] = {}
    for key, span in spans:
        reach.setdefault(key, [0.0]).extend(_ends(span))
    return [_bar(span, min(reach[key]), max(reach[key])) for key, span in spans]


def _ends(span: Span) -> tuple[float, float, float]:
    gain = float(span[0])
    lower, upper = (gain if end is None else float(end) for end in span[1:])
    return gain, lower, upper


def _bar(span: Span, least: float, most: float) -> Bar:
    scale = (WIDTH - 2 * EDGE) / ((most - least) or 1.0)

    def place(value: float) -> float:
        return round(EDGE + (value - least) * scale, 1)

    gain, lower, upper = _ends(span)
    return Bar(zero=place(0.0), start=place(lower), end=place(upper), gain=place(gain))


def _curve(found: Calibration) -> Curve:
    return Curve(
        points=tuple(
            (round(SIDE * float(one.confidence), 1), round(SIDE * (1 - float(one.right)), 1))
            for one in found.bins
            if one.confidence is not None and one.right is not None
        )
    )
