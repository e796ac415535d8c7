"""Program that plots the validation losses of a sweep: `python -m appliance.reports.sweep sweep.json FOLDER`.

It is a separate process for the same reason as `plot.py`, and has the same style.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

from matplotlib import pyplot
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from appliance.reports import plot  # it sets the style of the whole program

SVG, PNG = "sweep.svg", "sweep.png"
COLOURS = (plot.BLUE, plot.ORANGE, plot.RED, "#3a7d44", "#7b5aa6", "#8a6d3b", "#2a9d9d", "#c2569a")


def draw(sweep: SimpleNamespace) -> Figure:
    """Return a figure with a line for each run, the best first. The line of a stopped run ends with a cross."""
    figure = pyplot.figure(figsize=(9.6, 5.4), layout="constrained")
    figure.suptitle(sweep.title, x=0.01, ha="left", fontsize=12.5, fontweight="bold")
    axes = figure.add_subplot()
    for index, run in enumerate(sweep.runs):
        numbers = [step for step, _ in run.readings]
        losses = [float(loss) for _, loss in run.readings]
        if not numbers:
            continue
        values = ", ".join(f"{key} {value}" for key, value in vars(run.values).items())
        colour = COLOURS[index % len(COLOURS)]
        axes.plot(numbers, losses, color=colour, marker="o", markersize=3.5, label=f"{run.run}: {values}")
        if run.status == "cancelled":
            axes.plot(numbers[-1:], losses[-1:], color=colour, marker="x", markersize=9, linestyle="none")
    axes.set_title("Validation loss; a cross: stopped there")
    axes.set_xlabel("step")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(loc="upper right", fontsize=8.5)
    return figure


def main(words: Sequence[str]) -> int:
    """Run the program with its arguments, and return its exit code."""
    folder, text = Path(words[1]), Path(words[0]).read_text(encoding="utf-8")
    figure = draw(json.loads(text, object_hook=lambda fields: SimpleNamespace(**fields)))
    figure.savefig(folder / SVG, metadata={"Date": None, "Creator": None})
    figure.savefig(folder / PNG, dpi=144, metadata={"Software": None})
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
