"""Draws the validation losses of a sweep's runs over each other: `python -m appliance.reports.sweep sweep.json FOLDER`.

A program of its own, as `plot.py` is, and in its style.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib import pyplot
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from appliance.reports import plot  # its style counts for the whole program

SVG, PNG = "sweep.svg", "sweep.png"
COLOURS = (plot.BLUE, plot.ORANGE, plot.RED, "#3a7d44", "#7b5aa6", "#8a6d3b", "#2a9d9d", "#c2569a")


def draw(sweep: Mapping[str, Any]) -> Figure:
    """A line for each run, the best first; one that was stopped ends in a cross."""
    figure = pyplot.figure(figsize=(9.6, 5.4), layout="constrained")
    figure.suptitle(sweep["title"], x=0.01, ha="left", fontsize=12.5, fontweight="bold")
    axes = figure.add_subplot()
    for place, run in enumerate(sweep["runs"]):
        at = [step for step, _ in run["readings"]]
        losses = [float(loss) for _, loss in run["readings"]]
        if not at:
            continue
        values = ", ".join(f"{key} {value}" for key, value in run["values"].items())
        colour = COLOURS[place % len(COLOURS)]
        axes.plot(at, losses, color=colour, marker="o", markersize=3.5, label=f"{run['run']}: {values}")
        if run["status"] == "cancelled":
            axes.plot(at[-1:], losses[-1:], color=colour, marker="x", markersize=9, linestyle="none")
    axes.set_title("Validation loss; a cross: stopped there")
    axes.set_xlabel("step")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(loc="upper right", fontsize=8.5)
    return figure


def main(words: Sequence[str]) -> int:
    sweep, folder = json.loads(Path(words[0]).read_text(encoding="utf-8")), Path(words[1])
    figure = draw(sweep)
    figure.savefig(folder / SVG, metadata={"Date": None, "Creator": None})
    figure.savefig(folder / PNG, dpi=144, metadata={"Software": None})
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
