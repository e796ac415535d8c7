"""Program that plots the steps of a run: `python -m appliance.reports.plot STEPS FOLDER`.

It writes training.svg and training.png. The client starts it as a separate process, since its libraries are large and a
process that holds a key should not load them. It reads one file and writes two. MPLCONFIGDIR names the folder of
matplotlib's cache of fonts.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib as mpl

from appliance.domain.runs.steps import STEPS_FILE, StepRecord, best_step, parse_steps

mpl.use("Agg")
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

SVG, PNG = "training.svg", "training.png"
INK, SOFT, BLUE, ORANGE, RED = "#1f2933", "#9aa5b1", "#1f5fa8", "#c05f00", "#b3261e"
SMOOTHED = 15
"""Steps of the moving median, which is the bold line."""
_STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "text.color": INK,
    "axes.edgecolor": SOFT,
    "axes.labelcolor": INK,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e7eb",
    "grid.linewidth": 0.7,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    # The same steps give the same bytes: no time and no random identifiers are written.
    "svg.hashsalt": "appliance",
    "svg.fonttype": "path",
}


# Set for the whole program, because matplotlib applies some of these parameters when it writes a file.
mpl.rcParams.update(_STYLE)


def draw(steps: Sequence[StepRecord], title: str) -> Figure:
    """Return a figure of five panels over the steps: the loss on top, below it its causes and its cost."""
    figure = pyplot.figure(figsize=(9.6, 8.4), layout="constrained")
    figure.suptitle(title, x=0.01, ha="left", fontsize=12.5, fontweight="bold")
    grid = figure.add_gridspec(3, 2, height_ratios=(1.7, 1, 1))
    _draw_loss(figure.add_subplot(grid[0, :]), steps)
    numbers = [step.step for step in steps]
    for position, name, values in (
        (grid[1, 0], "Learning rate", [float(step.learning_rate) for step in steps]),
        (grid[1, 1], "Gradient norm, before clipping", [float(step.grad_norm) for step in steps]),
        (grid[2, 0], "Tokens a second, prompts too", paces(steps)),
        (grid[2, 1], "Most memory held so far, GB", [step.peak_bytes / 1e9 for step in steps]),
    ):
        axes = figure.add_subplot(position)
        smooth = name.startswith(("Gradient", "Tokens"))
        _draw_line(axes, numbers, values, smooth=smooth)
        axes.set_title(name)
        axes.set_ylim(bottom=0)
        axes.set_xlabel("step")
    return figure


def _draw_loss(axes: Axes, steps: Sequence[StepRecord]) -> None:
    losses = [math.nan if step.loss is None else float(step.loss) for step in steps]
    label = "not recorded of a private run" if all(map(math.isnan, losses)) else "training loss of a step"
    _draw_line(
        axes, [step.step for step in steps], losses, smooth=True, label=label, bold=f"median of {SMOOTHED} steps"
    )
    readings = [(step.step, step.validation_loss) for step in steps if step.validation_loss is not None]
    if readings:
        axes.plot(
            [step for step, _ in readings],
            [float(loss) for _, loss in readings],
            color=ORANGE,
            marker="o",
            markersize=3.5,
            label="validation loss",
        )
        best = best_step(readings)
        lowest = float(dict(readings)[best])
        axes.plot([best], [lowest], color=ORANGE, marker="o", markersize=9, fillstyle="none", linestyle="none",
                  label=f"lowest validation loss: {lowest:.3f} after step {best}")  # fmt: skip
    _mark_spikes(axes, steps)
    axes.set_title("Loss, nats a trained token")
    axes.set_xlabel("step")
    axes.set_ylim(bottom=0)
    axes.legend(loc="upper right")


def _mark_spikes(axes: Axes, steps: Sequence[StepRecord]) -> None:
    """Mark spikes of the loss. Only the first eight have labels; more would cover the line."""
    spikes = [step for step in steps if step.spike is not None]
    if not spikes:
        return
    losses = {step.step: float(step.loss or "nan") for step in spikes}
    axes.plot(list(losses), list(losses.values()), color=RED, marker="v", markersize=6,
              linestyle="none", label="spike, with its rows")  # fmt: skip
    for step in spikes[:8]:
        rows = ", ".join(map(str, (step.spike or ())[:3])) + (" …" if len(step.spike or ()) > 3 else "")
        offset = {"xytext": (7, 3), "textcoords": "offset points"}
        axes.annotate(f"row {rows}", (step.step, losses[step.step]), color=RED, fontsize=8.5, **offset)  # type: ignore[arg-type]


def _draw_line(
    axes: Axes, at: Sequence[int], values: Sequence[float], *, smooth: bool, label: str = "", bold: str = ""
) -> None:
    many = smooth and len(values) > 2 * SMOOTHED
    axes.plot(at, values, color=SOFT if many else BLUE, linewidth=0.8 if many else 1.5, label=label or None)
    if many:
        axes.plot(at, smoothed(values), color=BLUE, linewidth=1.8, label=bold or None)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.margins(x=0.02)


def smoothed(values: Sequence[float]) -> list[float]:
    """Return the moving median of the values."""
    half = SMOOTHED // 2
    windows = ([v for v in values[max(0, i - half) : i + half + 1] if math.isfinite(v)] for i in range(len(values)))
    return [median(window) if window else math.nan for window in windows]


def paces(steps: Sequence[StepRecord]) -> list[float]:
    """Return the tokens a second of each step, validation included; NaN for a step in which no time was measured."""
    rates, seconds, tokens = [], 0.0, 0
    for step in steps:
        passed = float(step.seconds) - seconds
        rates.append((step.tokens - tokens) / passed if passed > 0 else math.nan)
        seconds, tokens = float(step.seconds), step.tokens
    return rates


def main(words: Sequence[str]) -> int:
    """Run the program with its arguments, and return its exit code."""
    source, folder, title = Path(words[0]), Path(words[1]), words[2] if len(words) > 2 else STEPS_FILE
    steps = parse_steps(source.read_bytes(), source.name)
    if not steps:
        print(f"{source.name}: expected a step at least, got none", file=sys.stderr)
        return 2
    figure = draw(steps, title)
    figure.savefig(folder / SVG, metadata={"Date": None, "Creator": None})
    figure.savefig(folder / PNG, dpi=144, metadata={"Software": None})
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
