"""The plots of a review page: gains of gates and parts with intervals, confusions, calibration."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl

from appliance.domain.evaluation.calibration import Calibration
from appliance.domain.evaluation.confusion import Confusion
from appliance.domain.evaluation.evidence import Calibrations
from appliance.domain.releases.page.value import Judged, ReviewPage
from appliance.reports.review.markup import Markup

mpl.use("Agg")
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from appliance.formats.core.visible import is_visible

INK, SOFT, LINE, BLUE, ORANGE, RED = "#1f2933", "#7b8794", "#d2d6dc", "#1f5fa8", "#c05f00", "#b3261e"
_VARIABLES = {INK: "ink", SOFT: "soft", LINE: "line", BLUE: "blue", ORANGE: "orange", RED: "red"}
MOST_PARTS, MOST_LABELS, MOST_NAMES = 40, 150, 40
"""Parts and labels that are drawn, and labels whose names fit beside a matrix; the tables have all."""
_STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "text.color": INK,
    # A name with two dollar signs in it is no formula.
    "text.parse_math": False,
    "axes.edgecolor": SOFT,
    "axes.labelcolor": INK,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": LINE,
    "grid.linewidth": 0.7,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    # The same bytes for the same page: no time, no random identifiers.
    "svg.hashsalt": "appliance",
    "svg.fonttype": "path",
}
mpl.rcParams.update(_STYLE)


def draw_page(page: ReviewPage) -> dict[str, tuple[str, Figure]]:
    """Each figure that the page gives rise to, by its file's name, with what it shows in words."""
    found: dict[str, tuple[str, Figure]] = {}
    if page.judged is not None:
        found |= _draw_judged(page.judged)
    for confusion in page.confusion:
        if 1 < len(confusion.labels) <= MOST_LABELS:
            told = f"Confusion matrix of {len(confusion.labels)} labels on {confusion.set}"
            found[f"confusion-{confusion.set}"] = (told, draw_confusion(confusion))
    if page.calibration is not None:
        found["calibration"] = ("Share right by confidence, of adapter and base", draw_calibration(page.calibration))
    return found


def _draw_judged(judged: Judged) -> dict[str, tuple[str, Figure]]:
    found = {}
    tested = [result for result in judged.results if result.gain is not None]
    if tested:
        names = [f"{result.gate}: {result.metric}" for result in tested]
        spans = [(result.gain or "0", result.lower, result.upper) for result in tested]
        colours = [RED if result.outcome == "failed" else BLUE for result in tested]
        found["gates"] = ("Gain of each gate with its interval", draw_spans(names, spans, colours, "gain"))
    parts = judged.parts[:MOST_PARTS]
    if parts:
        names = [f"{part.by} {part.value}" for part in parts]
        spans = [(part.gain, part.lower, part.upper) for part in parts]
        colours = [RED if part.worse else BLUE for part in parts]
        found["parts"] = ("Gain of parts with intervals, the least first", draw_spans(names, spans, colours, "gain"))
    return found


def draw_spans(
    names: Sequence[str], spans: Sequence[tuple[str, str | None, str | None]], colours: Sequence[str], label: str
) -> Figure:
    """A point for each name, with its interval; the first on top."""
    figure = pyplot.figure(figsize=(8.4, 1.1 + 0.27 * len(names)), layout="constrained")
    axes = figure.add_subplot()
    for number, ((gain, lower, upper), colour) in enumerate(zip(spans, colours, strict=True)):
        value = float(gain)
        ends = [value if end is None else float(end) for end in (lower, upper)]
        axes.plot(ends, [number, number], color=colour, linewidth=1.6, solid_capstyle="butt")
        axes.plot([value], [number], color=colour, marker="o", markersize=5)
    axes.axvline(0, color=SOFT, linewidth=1)
    axes.set_yticks(range(len(names)), [_short(name) for name in names])
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(axis="x")
    axes.set_axisbelow(True)
    axes.set_xlabel(f"{label}; right of 0 the adapter is better")
    return figure


def draw_confusion(confusion: Confusion) -> Figure:
    """Shares of each expected label's rows, so that rare labels are seen too."""
    labels = [one.label for one in confusion.labels]
    place = {label: number for number, label in enumerate(labels)}
    shares = [[0.0] * len(labels) for _ in labels]
    for one in confusion.labels:
        if one.items:
            shares[place[one.label]][place[one.label]] = one.right / one.items
    items = {one.label: one.items for one in confusion.labels}
    for pair in confusion.pairs:
        shares[place[pair.expected]][place[pair.answered]] = pair.items / items[pair.expected]
    size = min(9.6, 3.6 + 0.16 * len(labels))
    figure = pyplot.figure(figsize=(size + 0.8, size), layout="constrained")
    axes = figure.add_subplot()
    shown = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    bar = figure.colorbar(shown, ax=axes, shrink=0.6)
    bar.set_label("share of the expected label's rows")
    if len(labels) <= MOST_NAMES:
        axes.set_xticks(range(len(labels)), [_short(label) for label in labels], rotation=90, fontsize=7.5)
        axes.set_yticks(range(len(labels)), [_short(label) for label in labels], fontsize=7.5)
    else:
        axes.set_xticks([])
        axes.set_yticks([])
    axes.set_xlabel("answered" if len(labels) <= MOST_NAMES else f"answered ({len(labels)} labels, sorted)")
    axes.set_ylabel("expected")
    return figure


def draw_calibration(found: Calibrations) -> Figure:
    """Share right against mean confidence by bin, and how many answers are in each."""
    figure = pyplot.figure(figsize=(8.4, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot([0, 1], [0, 1], color=SOFT, linewidth=1, linestyle="--")
    for name, one, colour, offset in (("adapter", found.adapter, BLUE, -0.02), ("base", found.base, ORANGE, 0.02)):
        _draw_bins(left, right, name, one, colour, offset)
    left.set_xlabel("mean confidence of a bin")
    left.set_ylabel("share right")
    left.set_xlim(0, 1.02)
    left.set_ylim(0, 1.02)
    left.legend(loc="upper left")
    right.set_xlabel("confidence")
    right.set_ylabel("answers")
    for axes in (left, right):
        axes.grid()
        axes.set_axisbelow(True)
    return figure


def _draw_bins(left: Axes, right: Axes, name: str, one: Calibration, colour: str, offset: float) -> None:
    full = [found for found in one.bins if found.confidence is not None and found.right is not None]
    left.plot(
        [float(found.confidence or 0) for found in full],
        [float(found.right or 0) for found in full],
        color=colour,
        marker="o",
        markersize=4,
        label=name,
    )
    places = [(number + 0.5) / len(one.bins) + offset for number in range(len(one.bins))]
    right.bar(places, [found.items for found in one.bins], width=0.04, color=colour)


def _short(name: str) -> str:
    """What fits beside a plot. One line: control characters are shown as escapes."""
    plain = "".join(c if is_visible(c) else c.encode("unicode_escape").decode("ascii") for c in name)
    return plain if len(plain) <= MOST_NAMES else f"{plain[: MOST_NAMES - 1]}…"


def encode_figure(figure: Figure, kind: str) -> bytes:
    """`svg` or `png`, the same bytes for the same figure."""
    written = io.BytesIO()
    metadata: dict[str, Any] = {"Date": None, "Creator": None} if kind == "svg" else {"Software": None}
    figure.savefig(written, format=kind, dpi=144, metadata=metadata)
    return written.getvalue()


def inline(svg: bytes, told: str) -> Markup:
    """The figure inside a page, in the page's own colours; without prologue, comments and its white ground."""
    found = svg.decode("utf-8")
    found = found[found.index("<svg") :]
    for pattern in (r"<!--.*?-->", r"<metadata>.*?</metadata>"):
        found = re.sub(pattern, "", found, flags=re.DOTALL)
    for colour, name in _VARIABLES.items():
        found = found.replace(colour, f"var(--{name})")
    found = re.sub(r"fill: #ffffff", "fill: none", found)
    found = re.sub(r'\b(width|height)="[0-9.]+pt"', "", found, count=2)
    quoted = told.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    return Markup(found.replace("<svg", f'<svg role="img" aria-label="{quoted}"', 1))
