"""Dataset rows: rendering with the model's template, splitting, digests, tokenizing. No torch.

In every kind of dataset a row is a list of parts, each a prompt and the target text that is trained.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import takewhile
from pathlib import Path
from typing import Any

from appliance.domain.data.kinds import (
    ABOUT_FILE,
    CLUSTER,
    GROUPS,
    PREFERENCE,
    QUESTIONS,
    DatasetDescription,
    DatasetKind,
    encode_about,
    find_share_problem,
    parse_about,
)
from appliance.domain.data.tool_calls import canonical_call
from appliance.domain.evaluation.rules import CALLED_ROWS
from appliance.errors import BadInput, refuse
from appliance.formats.artifacts.rows import cluster_digest, row_digest, rows_root, slice_digest
from appliance.formats.core.canonical import encode_canonical, parse_canonical
from appliance.ml.data.sources import Message, SourceRecord
from appliance.ml.model.chat import TEMPLATE_FILE, Chat, uses_tools

ROWS_FILE = "rows.jsonl"
DIGESTS_FILE = "row_digests.bin"
TRAIN, HELD_OUT = "train", "held-out"

MAX_LABEL_CHARACTERS = 200
MAX_LABELS = 1_000


@dataclass(frozen=True)
class RenderedRow:
    """A rendered row: `parts` are pairs (preceding text, target text), in order.

    - `text` identifies the row.
    - `answer` is the last target, as plain text.
    - `cluster` is common to rows that belong together, stored as a keyed digest.
    - `slice` is a value by which rows can be grouped.
    - `rejected` is the other completion of a preference, as the model would write it after the same prompt.
    - `calls`, for a chat with tools, is the index of the part whose calls an evaluation compares; `answer` is its
      target.
    """

    index: int
    split: str
    text: str
    answer: str
    parts: tuple[tuple[str, str], ...]
    cluster: str | None = None
    slice: str | None = None
    rejected: str | None = None
    calls: int | None = None

    def encode(self) -> bytes:
        """Return the row's canonical JSON, without fields whose value is None."""
        value = {name: value for name, value in self.__dict__.items() if value is not None}
        return encode_canonical({**value, "parts": [list(part) for part in self.parts]})


def parse_fraction(text: str) -> Fraction:
    """Return the held-out share of a decimal text, above 0 and at most 0.9."""
    refuse("dataset", find_share_problem(text))
    return Fraction(text)


Sides = list[tuple[SourceRecord, str]]
"""Records with their split, training or held out."""


def split_sources(dataset_kind: DatasetKind, sources: Sequence[SourceRecord], seed: int, share: Fraction) -> Sides:
    """Assign each record to the split of its prompt, together with all rows that belong to it."""
    prompts = _join(dataset_kind, sources)
    return [(source, assign_split(prompt, seed, share)) for source, prompt in zip(sources, prompts, strict=True)]


def hold_out_sources(sources: Sequence[SourceRecord]) -> Sides:
    """Assign all records of a validation set to the held-out split."""
    return [(source, HELD_OUT) for source in sources]


def join_sources(dataset_kind: DatasetKind, train: Sequence[SourceRecord], held_out: Sequence[SourceRecord]) -> Sides:
    """Join two files, the second held out.

    Raises:
        BadInput: both files have a prompt or a cluster in common.
    """
    for error in find_shared(dataset_kind, train, held_out):
        raise error
    return [(source, TRAIN) for source in train] + [(source, HELD_OUT) for source in held_out]


def find_shared(
    dataset_kind: DatasetKind, train: Sequence[SourceRecord], held_out: Sequence[SourceRecord]
) -> Iterator[BadInput]:
    """Yield an error for each row of the second file whose prompt or cluster is also in the first."""
    prompts = {same_key(prompt_of(dataset_kind, source)): source for source in train}
    clusters = {source.parts[CLUSTER]: source for source in train if CLUSTER in source.parts}
    for source in held_out:
        if other := prompts.get(same_key(prompt_of(dataset_kind, source))):
            yield BadInput(f"{source.place}: expected a prompt that is not trained on, got that of {other.place}")
        elif other := clusters.get(source.parts.get(CLUSTER, "")):
            yield BadInput(
                f"{source.place}, {CLUSTER}: expected one that is not trained on, got that of {other.place}; put all "
                "rows of a cluster into one of the two files"
            )


def assign_split(text: str, seed: int, share: Fraction) -> str:
    """Return the split of a text, derived from its hash.

    Texts that are equal apart from case and spacing have the same split, and the order of rows does not matter.
    """
    value = hashlib.sha256(f"split/v1\x00{seed}\x00{same_key(text)}".encode()).digest()
    return HELD_OUT if Fraction(int.from_bytes(value, "big"), 1 << 256) < share else TRAIN


def _join(dataset_kind: DatasetKind, sources: Sequence[SourceRecord]) -> list[str]:
    """Return one prompt for each record, the same for all records that share a prompt or a cluster."""
    prompts = [same_key(prompt_of(dataset_kind, source)) for source in sources]
    return join_rows(prompts, [source.parts.get(CLUSTER) for source in sources])


def join_rows(keys: Sequence[str], *shared: Sequence[str | None]) -> list[str]:
    """Return for each row the smallest key of its connected rows.

    Two rows are connected if they have a key or one of the other values in common, directly or through further rows.
    """
    above = list(range(len(keys)))  # a forest: each row's way to the first row of those that it belongs with

    def climb(place: int) -> int:
        while above[place] != place:
            above[place] = above[above[place]]
            place = above[place]
        return place

    for values in (keys, *shared):
        first: dict[str, int] = {}
        for place, value in enumerate(values):
            if value is not None:
                one, other = climb(place), climb(first.setdefault(value, place))
                above[max(one, other)] = min(one, other)
    least: dict[int, str] = {}
    for place, key in enumerate(keys):
        least[climb(place)] = min(key, least.get(climb(place), key))
    return [least[climb(place)] for place in range(len(keys))]


def same_key(text: str) -> str:
    """Return the text without differences of case and spacing; equal results mean equal texts."""
    return " ".join(text.casefold().split())


def known_by(dataset_kind: DatasetKind, source: SourceRecord) -> str:
    """Return the text that identifies a row: its prompt, or its whole text if the model writes all of it."""
    match dataset_kind:
        case "completion":
            return source.parts.get("prompt", "") + source.parts["text"]
        case "chat" | "preference":
            return "\n\n".join(_read_words(message) for message in source.messages)
        case _:
            return _question(dataset_kind, source)


def prompt_of(dataset_kind: DatasetKind, source: SourceRecord) -> str:
    """Return the prompt of a row's first target; rows with the same prompt have the same split.

    A completion without a prompt is identified by its text.
    """
    match dataset_kind:
        case "completion":
            return source.parts.get("prompt") or source.parts["text"]
        case "chat":
            before = takewhile(lambda message: message["role"] != "assistant", source.messages)
            return "\n\n".join(map(_read_words, before))
        case _:
            return known_by(dataset_kind, source)


def _read_words(message: Message) -> str:
    calls = message.get("tool_calls", ())
    return str(message["content"]) + "".join(f"\n{canonical_call(**call['function'])}" for call in calls)


def _question(dataset_kind: DatasetKind, source: SourceRecord) -> str:
    return "\n\n".join(text for part in QUESTIONS[dataset_kind] if (text := source.parts.get(part)))


_ANSWERS = {
    "classification": "label",
    "instruction": "output",
    "completion": "text",
    "summarisation": "summary",
    "question-answering": "answer",
}


def render_rows(
    sides: Sides, chat: Chat, dataset_kind: DatasetKind, *, instruction: str, is_validation_set: bool = False
) -> list[RenderedRow]:
    """Return the rendered rows.

    Raises:
        BadInput: a row cannot be rendered; or, unless `is_validation_set`, one of the two splits is empty.
    """
    if dataset_kind == "completion" and instruction:
        raise BadInput("dataset, instruction: expected none for completion, which has no template, got one")
    chat.check_plain(instruction, "dataset, instruction")
    for error in find_toolless(sides, chat):
        raise error
    rows = [render_row(index, *side, chat, dataset_kind, instruction) for index, side in enumerate(sides)]
    for error in () if is_validation_set else find_empty_splits(dataset_kind, sides):
        raise error
    return rows


def find_toolless(sides: Sides, chat: Chat) -> Iterator[BadInput]:
    """Yield one error for all rows that use tools, if the base's template does not support them."""
    using = [source.place for source, _ in sides if uses_tools(source.messages, source.tools)]
    if using and chat.calls is None:
        rows = "1 row uses" if len(using) == 1 else f"{len(using)} rows use"
        yield BadInput(f"{using[0]}: {TEMPLATE_FILE}: {chat.toolless}; {rows} tools: choose a base that has them")


def find_empty_splits(dataset_kind: DatasetKind, sides: Sides) -> Iterator[BadInput]:
    for split in (TRAIN, HELD_OUT):
        if all(side != split for _, side in sides):
            advice = _suggest_remedy(dataset_kind, [source for source, _ in sides])
            yield BadInput(f"dataset, held_out: expected at least one {split} row, got none{advice}")


def _suggest_remedy(dataset_kind: DatasetKind, sources: Sequence[SourceRecord]) -> str:
    if len(sources) > 1 and len(set(_join(dataset_kind, sources))) == 1:
        return (
            f": all {len(sources)} rows belong together, by their cluster or their prompt; hold out a file of its own, "
            "or name another column as the cluster"
        )
    return "; try another seed or another share"


def render_row(
    index: int, source: SourceRecord, split: str, chat: Chat, dataset_kind: DatasetKind, instruction: str
) -> RenderedRow:
    groups: dict[str, Any] = {part: source.parts.get(part) for part in GROUPS}
    if dataset_kind == "completion":
        before, text = source.parts.get("prompt", ""), source.parts["text"]
        chat.check_plain(before + text, source.place)
        return RenderedRow(index, split, before + text, text, ((before, chat.answer(text)),), **groups)
    messages = compose_messages(dataset_kind, source, instruction)
    if dataset_kind == PREFERENCE:
        chat.check_plain(source.parts["rejected"], f"{source.place}, rejected")
    for number, message in enumerate(messages):
        chat.check_plain(
            message["content"], f"{source.place}, message {number}" if dataset_kind == "chat" else source.place
        )
    try:
        parts = tuple(chat.render_answered(messages, source.tools))
        rejected = _render_rejected(messages, source, chat) if dataset_kind == PREFERENCE else None
    except BadInput as error:
        raise BadInput(f"{source.place}: {error.message}", code=error.code) from None
    if dataset_kind == PREFERENCE:
        # Only one completion is trained; earlier assistant turns are part of the prompt.
        parts = (("".join(before + answer for before, answer in parts[:-1]) + parts[-1][0], parts[-1][1]),)
    if source.tools:
        turns = [message for message in messages if message["role"] == "assistant"]
        calls = next((number for number, turn in enumerate(turns) if "tool_calls" in turn), 0)
        answer = parts[calls][1].removesuffix(chat.end_of_turn)
        return RenderedRow(index, split, known_by(dataset_kind, source), answer, parts, calls=calls, **groups)
    return RenderedRow(
        index, split, known_by(dataset_kind, source), messages[-1]["content"], parts, rejected=rejected, **groups
    )


def _render_rejected(messages: Sequence[Message], source: SourceRecord, chat: Chat) -> str:
    """Return the rejected completion after the same prompt."""
    other = {"role": "assistant", "content": source.parts["rejected"]}
    return chat.render_answered([*messages[:-1], other])[-1][1]


def compose_messages(dataset_kind: DatasetKind, source: SourceRecord, instruction: str) -> list[Message]:
    """Return the messages of a row, targets included, with the instruction, if any, as the system message."""
    if dataset_kind == "chat":
        turns = list(source.messages)
    elif dataset_kind == PREFERENCE:
        turns = [*source.messages, {"role": "assistant", "content": source.parts["chosen"]}]
    else:
        turns = [
            {"role": "user", "content": _question(dataset_kind, source)},
            {"role": "assistant", "content": source.parts[_ANSWERS[dataset_kind]]},
        ]
    system = [{"role": "system", "content": instruction}] if instruction and turns[0]["role"] != "system" else []
    return [*system, *turns]


def check_labels(sides: Sides, declared: Sequence[str], *, is_validation_set: bool = False) -> tuple[str, ...]:
    """Return the labels of a classification, sorted.

    `declared` are all labels; if empty, the labels are those that occur.

    Raises:
        BadInput: a label is invalid, or two rows with the same text have different labels.
    """
    for error in find_wrong_labels(sides, declared, is_validation_set=is_validation_set):
        raise error
    return tuple(sorted(_all_labels(sides, declared)))


def _all_labels(sides: Sides, declared: Sequence[str]) -> set[str]:
    return set(declared) | {source.parts["label"] for source, _ in sides}


def find_wrong_labels(sides: Sides, declared: Sequence[str], *, is_validation_set: bool = False) -> Iterator[BadInput]:
    """Yield an error for each row with an invalid label, then errors about all labels.

    `is_validation_set` is True for a validation set, which has no training rows.
    """
    seen: dict[str, SourceRecord] = {}
    known = set(declared)
    for source, _ in sides:
        label = source.parts["label"]
        if (wrong := _wrong_label(label, source.place)) is not None:
            yield wrong
        if declared and label not in known:
            yield BadInput(f"{source.place}: expected one of the labels {', '.join(declared)}, got {label!r}")
        other = seen.setdefault(source.parts["text"], source)
        if other.parts["label"] != label:
            yield BadInput(
                f"{source.place}: expected the label {other.parts['label']!r}, "
                f"which the same text has in {other.place}, got {label!r}"
            )
    labels = _all_labels(sides, declared)
    if is_validation_set:
        return
    if not 2 <= len(labels) <= MAX_LABELS:
        yield BadInput(f"dataset, labels: expected 2 to {MAX_LABELS} different ones, got {len(labels)}")
    for missing in sorted(labels - {source.parts["label"] for source, split in sides if split == TRAIN}):
        yield BadInput(f"dataset, label {missing!r}: expected a row in the training split, got none; try another seed")


def _wrong_label(label: str, place: str) -> BadInput | None:
    if label != label.strip() or not label.isprintable():
        return BadInput(f"{place}: expected a label on one line without outer spaces, got {label!r:.80}")
    if len(label) > MAX_LABEL_CHARACTERS:
        return BadInput(f"{place}: expected a label of at most {MAX_LABEL_CHARACTERS} characters, got {len(label)}")
    return None


def write_rows(
    rows: Sequence[RenderedRow], about: DatasetDescription, folder: Path, dataset_key: bytes, *, blind: bool = False
) -> str:
    """Write rows.jsonl, row_digests.bin and dataset.json; return the RFC 6962 root of the digests, as `sha256:…`.

    Clusters, and slices of a blind set, are written as keyed digests.
    """
    lines = [_conceal_groups(row, dataset_key, blind=blind).encode() for row in rows]
    digests = [row_digest(dataset_key, index, line) for index, line in enumerate(lines)]
    (folder / ROWS_FILE).write_bytes(b"".join(line + b"\n" for line in lines))
    (folder / DIGESTS_FILE).write_bytes(b"".join(digests))
    (folder / ABOUT_FILE).write_bytes(encode_about(about))
    return f"sha256:{rows_root(digests).hex()}"


def _conceal_groups(row: RenderedRow, dataset_key: bytes, *, blind: bool) -> RenderedRow:
    cluster = None if row.cluster is None else cluster_digest(dataset_key, row.cluster).hex()
    part = row.slice if row.slice is None or not blind else slice_digest(dataset_key, row.slice).hex()
    return replace(row, cluster=cluster, slice=part)


def count_groups(rows: Sequence[RenderedRow]) -> dict[str, int]:
    """Return the number of distinct values of each group, and of held-out rows with tools; zeros are omitted."""
    counts = {f"{name}s": len({getattr(row, name) for row in rows} - {None}) for name in GROUPS}
    counts[CALLED_ROWS] = sum(row.split == HELD_OUT and row.calls is not None for row in rows)
    return {name: count for name, count in counts.items() if count}


def load_about(folder: Path) -> DatasetDescription:
    return parse_about((folder / ABOUT_FILE).read_bytes())


def load_rows(folder: Path, split: str) -> list[RenderedRow]:
    """Return the rows of one split, in the file's order."""
    values = [parse_canonical(line) for line in (folder / ROWS_FILE).read_bytes().splitlines()]
    return [
        RenderedRow(**{**value, "parts": tuple((before, answer) for before, answer in value["parts"])})
        for value in values
        if value["split"] == split
    ]


def count_labels(rows: Sequence[RenderedRow], split: str) -> dict[str, int]:
    return dict(sorted(Counter(row.answer for row in rows if row.split == split).items()))


@dataclass(frozen=True)
class Sample:
    """A row as token ids.

    `spans` are the positions with a loss, in order, each from start to stop. A token is predicted by the one before it,
    so no span starts at 0. The end-of-turn token of a target is trained, too. For a preference, `ids` end with the
    chosen completion, and `rejected` are the tokens of the other one; empty otherwise.
    """

    index: int
    ids: tuple[int, ...]
    spans: tuple[tuple[int, int], ...]
    rejected: tuple[int, ...] = ()

    @property
    def trained_tokens(self) -> int:
        return sum(stop - start for start, stop in self.spans) + len(self.rejected)

    @property
    def tokens(self) -> int:
        """Number of tokens that go through the model."""
        return len(self.ids) + len(self.rejected)

    @property
    def longest(self) -> int:
        """Number of tokens of the row's longest sequence: a prompt and one completion."""
        return max(len(self.ids), self.spans[0][0] + len(self.rejected))

    def targets(self, first: int = 0) -> tuple[list[int], list[int]]:
        """Return the positions whose next token is trained, and these tokens; `first` is the row's first position."""
        places = [first + place for start, stop in self.spans for place in range(start - 1, stop - 1)]
        return places, [token for start, stop in self.spans for token in self.ids[start:stop]]

    @property
    def weight(self) -> int:
        """The row's weight in the mean loss of a step: its trained tokens, or 1 for a preference."""
        return 1 if self.rejected else self.trained_tokens


def tokenize_rows(rows: Sequence[RenderedRow], chat: Chat, *, max_length: int) -> list[Sample]:
    """Return the rows as tokens.

    Raises:
        BadInput: a row is too long, or there are no rows.
    """
    samples = [tokenize_row(row, chat, max_length, f"dataset, row {row.index}") for row in rows]
    if not samples:
        raise BadInput("dataset: expected rows to train on, got none", code="nothing-to-train")
    return samples


def tokenize_row(row: RenderedRow, chat: Chat, max_length: int, place: str, limit: str = "max_length") -> Sample:
    """Return the row as tokens, with the two texts of each part tokenized separately, as in serving.

    `place` and `limit` name the row and the limit in errors.

    Raises:
        BadInput: the row is too long, has no trained token, or its tokens do not decode to the target text.
    """
    ids: list[int] = []
    spans = []
    for before, answer in row.parts:
        ids += chat.encode(before)
        own = _encode_answer(answer, chat, place)
        # The first token cannot be predicted from anything.
        spans.append((max(len(ids), 1), len(ids) + len(own)))
        ids += own
    rejected = () if row.rejected is None else tuple(_encode_answer(row.rejected, chat, place))
    longest = max(len(ids), spans[0][0] + len(rejected))
    if longest > max_length:
        raise BadInput(f"{place}: expected at most {max_length} tokens ({limit}), got {longest}")
    if not any(start < stop for start, stop in spans):
        raise BadInput(f"{place}: expected tokens to train on, got none", code="nothing-to-train")
    return Sample(row.index, tuple(ids), tuple((start, stop) for start, stop in spans if start < stop), rejected)


def _encode_answer(answer: str, chat: Chat, place: str) -> list[int]:
    own = chat.encode(answer)
    if chat.decode(own) != answer.removesuffix(chat.end_of_turn):
        raise BadInput(
            f"{place}: expected tokens that give back the answer, got {chat.decode(own)[:40]!r}", code="answer-altered"
        )
    return own
