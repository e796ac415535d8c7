"""A file of texts and labels becomes rows: parsed strictly, rendered with the model's own template, split, digested.

Nothing is guessed and nothing is skipped: the first row that does not fit stops the import and is named by its line.
No torch.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from appliance.errors import BadInput, TooLarge
from appliance.formats.canonical import encode_canonical, parse_canonical
from appliance.formats.rows import row_digest, rows_root
from appliance.ml.chat import Chat

ROWS_FILE = "rows.jsonl"
DIGESTS_FILE = "row_digests.bin"
TRAIN, HELD_OUT = "train", "held-out"

# Bounded: a short text such as 1e9999999 is a number that takes seconds to write out.
_DECIMAL = re.compile(r"[0-9]{1,3}\.[0-9]{1,12}")

MAX_ROWS = 1_000_000
MAX_TEXT_CHARACTERS = 200_000
MAX_LABEL_CHARACTERS = 200
MAX_LABELS = 1_000


@dataclass(frozen=True)
class Source:
    """One row as it stood in the file; `line` is where it begins, counted from 1."""

    line: int
    text: str
    label: str


@dataclass(frozen=True)
class Row:
    """One rendered row: `answer` is what the model is to write after `prompt`."""

    index: int
    split: str
    text: str
    label: str
    prompt: str
    answer: str

    def encode(self) -> bytes:
        return encode_canonical(self.__dict__)


def parse_source(data: bytes, kind: str, columns: Mapping[str, str]) -> list[Source]:
    """The rows of a CSV or JSONL file; `columns` maps `text` and `label` to the file's own names."""
    parsers = {"csv": _parse_csv, "jsonl": _parse_jsonl}
    if kind not in parsers:
        raise BadInput(f"dataset, format: expected csv or jsonl, got {kind!r}")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise BadInput(f"dataset, line {line}: expected UTF-8, got the byte 0x{data[error.start]:02x}") from None
    rows = []
    for row in parsers[kind](text, columns):
        rows.append(row)
        if len(rows) > MAX_ROWS:
            raise TooLarge(f"dataset: expected at most {MAX_ROWS} rows, got more")
    _check_rows(rows)
    return rows


def _parse_csv(text: str, columns: Mapping[str, str]) -> Iterator[Source]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    line = 1
    try:
        header = next(reader, [])
        places = {name: _find_column(header, columns[name]) for name in ("text", "label")}
        line = reader.line_num + 1
        for fields in reader:
            if len(fields) != len(header):
                raise BadInput(f"dataset, line {line}: expected {len(header)} fields, got {len(fields)}")
            yield Source(line, fields[places["text"]], fields[places["label"]])
            line = reader.line_num + 1
    except csv.Error as error:
        raise BadInput(f"dataset, line {line}: expected CSV, got: {error}") from None


def _find_column(header: list[str], name: str) -> int:
    if header.count(name) != 1:
        raise BadInput(f"dataset, line 1: expected one column {name!r}, got the columns {', '.join(header)!r}")
    return header.index(name)


def _parse_jsonl(text: str, columns: Mapping[str, str]) -> Iterator[Source]:
    lines = text.split("\n")
    if lines and not lines[-1]:
        lines.pop()
    for line, content in enumerate(lines, start=1):
        try:
            value = json.loads(content, object_pairs_hook=_object)
        except (ValueError, RecursionError):
            raise BadInput(f"dataset, line {line}: expected a JSON object, got {content[:40]!r}") from None
        if not isinstance(value, dict):
            raise BadInput(f"dataset, line {line}: expected a JSON object, got {type(value).__name__}")
        yield Source(line, _member(value, columns["text"], line), _member(value, columns["label"], line))


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a key twice")
    return value


def _member(value: dict[str, Any], name: str, line: int) -> str:
    member = value.get(name)
    if not isinstance(member, str):
        got = type(member).__name__ if name in value else f"the members {', '.join(sorted(value))}"
        raise BadInput(f"dataset, line {line}: expected text in {name!r}, got {got}")
    return member


def _check_rows(rows: list[Source]) -> None:
    """Every row by itself, then the rows together: a text has one label, and there is more than one label."""
    seen: dict[str, Source] = {}
    for row in rows:
        _check_row(row)
        other = seen.setdefault(row.text, row)
        if other.label != row.label:
            raise BadInput(
                f"dataset, line {row.line}: expected the label {other.label!r}, "
                f"which the same text has in line {other.line}, got {row.label!r}"
            )
    labels = {row.label for row in rows}
    if not 2 <= len(labels) <= MAX_LABELS:
        raise BadInput(f"dataset, labels: expected 2 to {MAX_LABELS} different ones, got {len(labels)}")


def _check_row(row: Source) -> None:
    where = f"dataset, line {row.line}"
    if not row.text.strip():
        raise BadInput(f"{where}: expected a text, got only white space")
    if len(row.text) > MAX_TEXT_CHARACTERS:
        raise TooLarge(f"{where}: expected at most {MAX_TEXT_CHARACTERS} characters, got {len(row.text)}")
    if "\x00" in row.text or "\x00" in row.label:
        raise BadInput(f"{where}: expected text, got a NUL character")
    if not row.label or row.label != row.label.strip() or not row.label.isprintable():
        raise BadInput(f"{where}: expected a label on one line without outer spaces, got {row.label!r:.80}")
    if len(row.label) > MAX_LABEL_CHARACTERS:
        raise BadInput(f"{where}: expected a label of at most {MAX_LABEL_CHARACTERS} characters, got {len(row.label)}")
    try:
        (row.text + row.label).encode("utf-8")
    except UnicodeEncodeError:
        raise BadInput(f"{where}: expected Unicode text, got half of a surrogate pair") from None


def parse_fraction(text: str) -> Fraction:
    """The held-out share, a decimal fraction in text, above 0 and at most 0.9."""
    if _DECIMAL.fullmatch(text) is None:
        raise BadInput(f"dataset, held_out: expected a decimal fraction, got {text!r:.40}")
    share = Fraction(text)
    if not 0 < share <= Fraction(9, 10):
        raise BadInput(f"dataset, held_out: expected above 0 and at most 0.9, got {text}")
    return share


def assign_split(text: str, seed: int, share: Fraction) -> str:
    """By the text's own hash: equal texts, case and spacing aside, stand on one side, and order means nothing."""
    key = " ".join(text.casefold().split())
    value = hashlib.sha256(f"split/v1\x00{seed}\x00{key}".encode()).digest()
    return HELD_OUT if Fraction(int.from_bytes(value, "big"), 1 << 256) < share else TRAIN


def render_rows(sources: list[Source], chat: Chat, *, instruction: str, seed: int, share: Fraction) -> list[Row]:
    """The rows with prompt, answer and side; every label must occur in training, and something must be held out."""
    chat.check_plain(instruction, "dataset, instruction")
    rows = [_render_row(index, source, chat, instruction, seed, share) for index, source in enumerate(sources)]
    trained = {row.label for row in rows if row.split == TRAIN}
    missing = sorted({row.label for row in rows} - trained)
    if missing:
        raise BadInput(
            f"dataset, label {missing[0]!r}: expected a row in the training split, got none; try another seed"
        )
    if all(row.split == TRAIN for row in rows):
        raise BadInput(
            "dataset, held_out: expected at least one held-out row, got none; try another seed or a larger share"
        )
    return rows


def _render_row(index: int, source: Source, chat: Chat, instruction: str, seed: int, share: Fraction) -> Row:
    chat.check_plain(source.text, f"dataset, line {source.line}")
    chat.check_plain(source.label, f"dataset, line {source.line}, label")
    prompt = chat.render(compose_messages(instruction, source.text))
    split = assign_split(source.text, seed, share)
    return Row(index, split, source.text, source.label, prompt, chat.answer(source.label))


def compose_messages(instruction: str, text: str) -> list[dict[str, str]]:
    """How a row's text is put to the model: the instruction, if any, as the system's message."""
    system = [{"role": "system", "content": instruction}] if instruction else []
    return [*system, {"role": "user", "content": text}]


def write_rows(rows: list[Row], folder: Path, dataset_key: bytes) -> str:
    """Writes rows.jsonl and row_digests.bin; the RFC 6962 root over the digests, as `sha256:…`."""
    lines = [row.encode() for row in rows]
    digests = [row_digest(dataset_key, index, line) for index, line in enumerate(lines)]
    (folder / ROWS_FILE).write_bytes(b"".join(line + b"\n" for line in lines))
    (folder / DIGESTS_FILE).write_bytes(b"".join(digests))
    return f"sha256:{rows_root(digests).hex()}"


def load_rows(folder: Path, split: str) -> list[Row]:
    """The rows of one side, in the file's order."""
    lines = (folder / ROWS_FILE).read_bytes().splitlines()
    rows = [Row(**parse_canonical(line)) for line in lines]
    return [row for row in rows if row.split == split]


def list_labels(folder: Path) -> list[str]:
    """Every label of the dataset, sorted."""
    return sorted({row.label for split in (TRAIN, HELD_OUT) for row in load_rows(folder, split)})


def count_labels(rows: list[Row], split: str) -> dict[str, int]:
    return dict(sorted(Counter(row.label for row in rows if row.split == split).items()))
