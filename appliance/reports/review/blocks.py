"""Blocks of a section, as templates and the terminal's printer show them: facts, tables, texts and plots.

The functions at the end make cells, facts, rows and tables from values.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from appliance.domain.evaluation.confusion import Confusion, ModelCalibration

ERASED = "its text was erased, or is withheld"
"""Text that replaces an erased or withheld text."""
NONE = "–"
"""Text of a value that does not exist."""
WIDTH, EDGE = 160.0, 6.0
"""Width of a bar's drawing, and the part that stays free at each side."""
SIDE = 100.0
"""Side of the square in which calibration is drawn."""
MOST_DRAWN, MOST_NAMED, MOST_CHARACTERS = 150, 40, 24
"""Most labels of a drawn matrix, most labels with their names beside it, and most characters of such a name."""


@dataclass(frozen=True)
class Bar:
    """A gain with its interval and the position of zero, measured from the left."""

    zero: float
    start: float
    end: float
    gain: float


@dataclass(frozen=True)
class Cell:
    """A piece of text.

    `kind`: `text`, `quiet`, `strong`, `chip`, `mark` (of reported chips), `time`, `digest`, `entry`, `anchor`,
    `interval`, `del`, `ins`, or what it links to: `adapter`, `run`, `dataset` or `part`. `target`: a part's name.
    `tone`: of a chip, `good`, `wait`, `bad` or none. `entry`: the entry that binds a digest.
    """

    text: str
    kind: str = "text"
    tone: str = ""
    target: str = ""
    entry: int | None = None
    bar: Bar | None = None


Content = tuple[Cell, ...]


@dataclass(frozen=True)
class Fact:
    """A labelled value. `is_reported`: the service reports it from its state, and a client cannot check it."""

    label: str
    value: Content
    is_reported: bool = False


@dataclass(frozen=True)
class FactList:
    """A list of labelled values. `is_beside`: few longer values, which a screen shows in two columns."""

    kind: ClassVar[str] = "facts"
    rows: tuple[Fact, ...]
    is_beside: bool = False


@dataclass(frozen=True)
class Point:
    """A statement that weighs in a decision, and what explains it. `tone`: `good`, `wait`, `bad` or none."""

    head: Content
    body: Content = ()
    tone: str = ""


@dataclass(frozen=True)
class Points:
    """Statements under a title. `is_reported` is that of a fact."""

    kind: ClassVar[str] = "points"
    title: str
    rows: tuple[Point, ...]
    is_reported: bool = False


@dataclass(frozen=True)
class Columns:
    """Groups of statements, which a wide screen shows in columns."""

    kind: ClassVar[str] = "columns"
    columns: tuple[tuple[Points, ...], ...]


@dataclass(frozen=True)
class Tile:
    """A figure with its label and what explains it. `tone` is that of a point."""

    label: str
    figure: str
    detail: Content
    tone: str = ""
    is_reported: bool = False


@dataclass(frozen=True)
class Tiles:
    """Figures that are compared at a glance."""

    kind: ClassVar[str] = "tiles"
    rows: tuple[Tile, ...]


@dataclass(frozen=True)
class Column:
    """A column of a table. `is_reported` is that of a fact."""

    label: str
    is_number: bool = False
    is_reported: bool = False


@dataclass(frozen=True)
class TableRow:
    """A row of a table. `line`: the same as a label and a text, for a terminal. `is_marked`: it needs attention."""

    cells: tuple[Content, ...]
    line: tuple[str, str] | None = None
    is_marked: bool = False


@dataclass(frozen=True)
class TableBlock:
    """A table. The console shows `most` rows; `rest` is the form that has all of them, `csv` or `json`."""

    kind: ClassVar[str] = "table"
    label: str
    columns: tuple[Column, ...]
    rows: tuple[TableRow, ...]
    most: int = 200
    rest: str = "json"


@dataclass(frozen=True)
class Paragraph:
    """A paragraph. `tone`: `lead`, `note`, `good`, `wait`, `bad` or `code`."""

    kind: ClassVar[str] = "text"
    content: Content
    tone: str = "note"


@dataclass(frozen=True)
class CalibrationCurve:
    """Share of correct answers by mean confidence, for the bins with answers, measured from the top left."""

    name: str
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class CalibrationPlot:
    """A plot of calibration."""

    kind: ClassVar[str] = "curves"
    name: str
    label: str
    curves: tuple[CalibrationCurve, ...]


@dataclass(frozen=True)
class Matrix:
    """A drawn confusion matrix: a name for each label if there are few, and (column, row, share, tooltip) of cells."""

    kind: ClassVar[str] = "matrix"
    name: str
    label: str
    size: int
    names: tuple[str, ...]
    cells: tuple[tuple[int, int, str, str], ...]

    @property
    def margin(self) -> int:
        """Space for the names at the left and below."""
        return 5 * max(map(len, self.names), default=0) + 4


@dataclass(frozen=True)
class Folded:
    """A block that is shown on demand."""

    kind: ClassVar[str] = "folded"
    summary: str
    block: FactList | TableBlock | Paragraph


Block = FactList | Columns | Tiles | TableBlock | Paragraph | CalibrationPlot | Matrix | Folded


@dataclass(frozen=True)
class Section:
    """A section of the review page.

    `part`: the part of the page that it belongs to. `chips`: its status. `unit`: the unit of a release request.
    `finding`: the entry of a finding. `is_open`: of such a request or finding, that it is not met or closed.
    `is_evidence`: it has the figures on which the decision rests.
    """

    title: str
    part: str
    blocks: tuple[Block, ...]
    chips: Content = ()
    is_reported: bool = False
    unit: str = ""
    finding: int | None = None
    is_open: bool = False
    is_evidence: bool = False


Span = tuple[str, str | None, str | None]
"""A gain and the ends of its interval."""


def draw_bars(spans: Sequence[tuple[str, Span]]) -> list[Bar]:
    """Return bars with one scale for all spans of the same key, so that they can be compared. Each includes zero."""
    reach: dict[str, list[float]] = {}
    for key, span in spans:
        reach.setdefault(key, [0.0]).extend(_ends(span))
    return [_draw_bar(span, min(reach[key]), max(reach[key])) for key, span in spans]


def _ends(span: Span) -> tuple[float, float, float]:
    gain = float(span[0])
    lower, upper = (gain if end is None else float(end) for end in span[1:])
    return gain, lower, upper


def _draw_bar(span: Span, least: float, most: float) -> Bar:
    scale = (WIDTH - 2 * EDGE) / ((most - least) or 1.0)

    def place(value: float) -> float:
        return round(EDGE + (value - least) * scale, 1)

    gain, lower, upper = _ends(span)
    return Bar(zero=place(0.0), start=place(lower), end=place(upper), gain=place(gain))


def draw_curve(found: ModelCalibration) -> CalibrationCurve:
    """Return the curve of a model's calibration."""
    return CalibrationCurve(
        found.model,
        tuple(
            (round(SIDE * float(one.confidence), 1), round(SIDE * (1 - float(one.right)), 1))
            for one in found.bins
            if one.confidence is not None and one.right is not None
        ),
    )


def draw_matrix(confusion: Confusion) -> Matrix | None:
    """Return the confusion matrix in shares of each expected label's rows, so that rare labels are visible, too.

    A matrix of one label, or of more than MOST_DRAWN, is not drawn.
    """
    labels = [one.label for one in confusion.labels]
    if not 1 < len(labels) <= MOST_DRAWN:
        return None
    place, rows = {label: number for number, label in enumerate(labels)}, {one.label: one for one in confusion.labels}
    counts = [(one.label, one.label, one.right) for one in confusion.labels if one.right]
    counts += [(pair.expected, pair.answered, pair.items) for pair in confusion.pairs]
    return Matrix(
        name=f"confusion-{confusion.set}",
        label=f"Confusion matrix of {len(labels)} labels on {confusion.set}: a row is an expected label, a column an "
        "answer",
        size=len(labels),
        names=tuple(map(_shorten, labels)) if len(labels) <= MOST_NAMED else (),
        cells=tuple(
            (
                place[answered],
                place[expected],
                f"{count / rows[expected].items:.3f}",
                f"{expected}, answered {answered}: {count} of {rows[expected].items} rows",
            )
            for expected, answered, count in counts
        ),
    )


def _shorten(name: str) -> str:
    return name if len(name) <= MOST_CHARACTERS else f"{name[: MOST_CHARACTERS - 1]}…"


Part = Cell | Content | str | int | None
"""A value of which cells are made."""
MARK = Cell("reported", "mark")
"""The mark of a value that the service reports from its state."""


def make_content(*parts: Part) -> Content:
    """Return the parts as cells."""
    cells: list[Cell] = []
    for part in parts:
        cells += part if isinstance(part, tuple) else [part if isinstance(part, Cell) else Cell(_plain(part))]
    return tuple(cells)


def _plain(value: str | int | None) -> str:
    return NONE if value is None else str(value)


def make_fact(label: str, *parts: Part, reported: bool = False) -> Fact:
    """Return a labelled value."""
    return Fact(label, make_content(*parts), reported)


def make_note(*parts: Part, tone: str = "note") -> Paragraph:
    """Return a paragraph."""
    return Paragraph(make_content(*parts), tone)


def make_row(*cells: Part, line: tuple[str, str] | None = None, marked: bool = False) -> TableRow:
    """Return a row of these cells."""
    return TableRow(tuple(map(make_content, cells)), line, marked)


def make_table(label: str, columns: str, rows: Iterable[TableRow], most: int = 200, rest: str = "json") -> TableBlock:
    """Return a table. In `columns`, `#` begins the label of a column of numbers, and `*` that of a reported one."""
    found = (Column(name.lstrip("#*"), name.startswith("#"), name.startswith("*")) for name in columns.split(", "))
    return TableBlock(label, tuple(found), tuple(rows), most, rest)


def make_written(value: str | None) -> Cell:
    """Return a text that a person wrote."""
    return Cell(ERASED, "quiet") if value is None else Cell(value or "none")


def make_entry(index: int) -> Cell:
    """Return a link to an entry."""
    return Cell(str(index), "entry")


def make_time(value: str | None) -> Cell:
    """Return a time."""
    return Cell(NONE) if value is None else Cell(value, "time")


def make_chip(text: str, tone: str = "") -> Cell:
    """Return a short status."""
    return Cell(text, "chip", tone)
