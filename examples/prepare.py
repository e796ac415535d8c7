"""Makes train.csv and held-out.csv (text,label) from a public set that you have, for the recipes beside this file.

    python3 examples/prepare.py sst2 ../shared/data/sst2 FOLDER [--every N]

Standard library only. With --every N it takes every Nth row of each side, for a look that ends in minutes. A row of the
held-out side whose text is trained on is left out and counted: an import refuses such a file.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterator
from pathlib import Path

Rows = list[tuple[str, str]]
SETS = {
    "sst2": ("train.tsv", "dev.tsv"),
    "banking77": ("train.csv", "test.csv"),
    "cuad": ("clauses_train.csv", "clauses_test.csv"),
}
SENTIMENT = {"0": "negative", "1": "positive"}


def read(name: str, path: Path) -> Iterator[tuple[str, str]]:
    """Text and label of each row; the labels as words."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        if name == "sst2":
            for line in file:
                text, _, label = line.rstrip("\n").rpartition("\t")
                yield text, SENTIMENT[label]
        else:
            for row in csv.DictReader(file, strict=True):
                yield row["text"], row["category"].replace("_", " ")


def key(text: str) -> str:
    """Rows that differ in case and spacing alone are one row."""
    return " ".join(text.casefold().split())


def take(rows: Iterator[tuple[str, str]], seen: dict[str, str], every: int) -> tuple[Rows, int]:
    """Every so many rows, each text once; how many were left out because their text was there before."""
    taken, left_out = [], 0
    for number, (text, label) in enumerate(rows):
        if number % every:
            continue
        if key(text) in seen:
            left_out += 1
            continue
        seen[key(text)] = label
        taken.append((text, label))
    return taken, left_out


def prepare(name: str, source: Path, folder: Path, every: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    seen: dict[str, str] = {}
    for side, file in zip(("train", "held-out"), SETS[name], strict=True):
        rows, left_out = take(read(name, source / file), seen, every)
        with (folder / f"{side}.csv").open("w", encoding="utf-8", newline="") as out:
            csv.writer(out, lineterminator="\n").writerows([("text", "label"), *rows])
        print(f"{folder / side}.csv: {len(rows)} rows of {file}, {left_out} left out as seen before")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=SETS)
    parser.add_argument("source", type=Path, help="the folder that holds the set")
    parser.add_argument("folder", type=Path, help="where the two files go")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="take every Nth row")
    given = parser.parse_args()
    prepare(given.name, given.source, given.folder, given.every)
