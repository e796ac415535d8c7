"""Records become rows: rendered with the model's own template, split, digested. No torch.

Every task has this in common: a row is a list of parts, each a prompt and the answer that is trained.
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

from appliance.domain.data.tasks import CLUSTER, GROUPS, PREFERENCE, QUESTIONS, Task, wrong_share
from appliance.domain.data.teaching import ABOUT_FILE, About, encode_about, parse_about
from appliance.domain.data.tool_calls import canonical_call
from appliance.domain.evaluation.judging import CALLED_ROWS
from appliance.errors import BadInput, refuse
from appliance.formats.artifacts.rows import cluster_digest, row_digest, rows_root, slice_digest
from appliance.formats.core.canonical import encode_canonical, parse_canonical
from appliance.ml.data.sources import Message, Source
from appliance.ml.model.chat import TEMPLATE_FILE, Chat, uses_tools

ROWS_FILE = "rows.jsonl"
DIGESTS_FILE = "row_digests.bin"
TRAIN, HELD_OUT = "train", "held-out"

MAX_LABEL_CHARACTERS = 200
MAX_LABELS = 1_000


@dataclass(frozen=True)
class Row:
    """One rendered row: `parts` are (the text before, what the model is to write), in order.

    `text` identifies the row. `answer` is the last answer that the model is to write in it, as plain text. `cluster`:
    what rows that belong together have in common, in the file as a keyed digest; `slice`: a value to divide rows by.
    `rejected`: of a preference the other answer, as the model would write it behind the same prompt. `calls`: of a chat
    with tools the number of the part that an evaluation compares by its calls, and whose answer `answer` is.
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
        """A row without cluster, slice, rejected answer or calls has no such member."""
        value = {name: value for name, value in self.__dict__.items() if value is not None}
        return encode_canonical({**value, "parts": [list(part) for part in self.parts]})


def parse_fraction(text: str) -> Fraction:
    """The held-out share, a decimal fraction in text, above 0 and at most 0.9."""
    refuse("dataset", wrong_share(text))
    return Fraction(text)


Sides = list[tuple[Source, str]]
"""Records, each with its side: trained on, or held out."""


def split_sources(task: Task, sources: Sequence[Source], seed: int, share: Fraction) -> Sides:
    """Each to the side that its prompt decides, together with all rows that it belongs with."""
    prompts = _join(task, sources)
    return [(source, assign_split(prompt, seed, share)) for source, prompt in zip(sources, prompts, strict=True)]


def judge_sources(sources: Sequence[Source]) -> Sides:
    """All held out: those of a validation set."""
    return [(source, HELD_OUT) for source in sources]


def join_sources(task: Task, train: Sequence[Source], held_out: Sequence[Source]) -> Sides:
    """Two files, the second held out; no prompt and no cluster of the first must be in the second."""
    for error in find_shared(task, train, held_out):
        raise error
    return [(source, TRAIN) for source in train] + [(source, HELD_OUT) for source in held_out]


def find_shared(task: Task, train: Sequence[Source], held_out: Sequence[Source]) -> Iterator[BadInput]:
    """Each row of the second file whose prompt, or whose cluster, is also in the first."""
    prompts = {same_key(prompt_of(task, source)): source for source in train}
    clusters = {source.parts[CLUSTER]: source for source in train if CLUSTER in source.parts}
    for source in held_out:
        if other := prompts.get(same_key(prompt_of(task, source))):
            yield BadInput(f"{source.place}: expected a prompt that is not trained on, got that of {other.place}")
        elif other := clusters.get(source.parts.get(CLUSTER, "")):
            yield BadInput(
                f"{source.place}, {CLUSTER}: expected one that is not trained on, got that of {other.place}; put all "
                "rows of a cluster into one of the two files"
            )


def assign_split(text: str, seed: int, share: Fraction) -> str:
    """By the text's own hash: texts that are equal apart from case and spacing are on one side, and the order does not
    matter."""
    value = hashlib.sha256(f"split/v1\x00{seed}\x00{same_key(text)}".encode()).digest()
    return HELD_OUT if Fraction(int.from_bytes(value, "big"), 1 << 256) < share else TRAIN


def _join(task: Task, sources: Sequence[Source]) -> list[str]:
    """For each record one prompt, the same for all records that share a prompt or a cluster."""
    prompts = [same_key(prompt_of(task, source)) for source in sources]
    return join_rows(prompts, [source.parts.get(CLUSTER) for source in sources])


def join_rows(keys: Sequence[str], *shared: Sequence[str | None]) -> list[str]:
    """For each row the least key of those that it belongs with: rows that have a key in common or one of the other
    values, if only by way of further rows."""
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
    """Texts with one key are the same, case and spacing aside."""
    return " ".join(text.casefold().split())


def known_by(task: Task, source: Source) -> str:
    """What a row is known by: what is put to the model; where the model writes all of it, the whole text."""
    match task:
        case "completion":
            return source.parts.get("prompt", "") + source.parts["text"]
        case "chat" | "preference":
            return "\n\n".join(_words_of(message) for message in source.messages)
        case _:
            return _question(task, source)


def prompt_of(task: Task, source: Source) -> str:
    """What the first answer of a row answers. Rows with one prompt are on one side, whatever follows. A completion
    without a prompt is all answer, and known by it."""
    match task:
        case "completion":
            return source.parts.get("prompt") or source.parts["text"]
        case "chat":
            before = takewhile(lambda message: message["role"] != "assistant", source.messages)
            return "\n\n".join(map(_words_of, before))
        case _:
            return known_by(task, source)


def _words_of(message: Message) -> str:
    calls = message.get("tool_calls", ())
    return str(message["content"]) + "".join(f"\n{canonical_call(**call['function'])}" for call in calls)


def _question(task: Task, source: Source) -> str:
    return "\n\n".join(text for part in QUESTIONS[task] if (text := source.parts.get(part)))


_ANSWERS = {
    "classification": "label",
    "instruction": "output",
    "completion": "text",
    "summarisation": "summary",
    "question-answering": "answer",
}


def render_rows(sides: Sides, chat: Chat, task: Task, *, instruction: str, judges: bool = False) -> list[Row]:
    """The rows, rendered; something must be trained on, and something held out, unless all of them only judge."""
    if task == "completion" and instruction:
        raise BadInput("dataset, instruction: expected none for completion, which has no template, got one")
    chat.check_plain(instruction, "dataset, instruction")
    for error in find_toolless(sides, chat):
        raise error
    rows = [render_row(index, *side, chat, task, instruction) for index, side in enumerate(sides)]
    for error in () if judges else find_empty_splits(task, sides):
        raise error
    return rows


def find_toolless(sides: Sides, chat: Chat) -> Iterator[BadInput]:
    """One error for all rows that use tools, where the base's template has none."""
    using = [source.place for source, _ in sides if uses_tools(source.messages, source.tools)]
    if using and chat.calls is None:
        rows = "1 row uses" if len(using) == 1 else f"{len(using)} rows use"
        yield BadInput(f"{using[0]}: {TEMPLATE_FILE}: {chat.toolless}; {rows} tools: choose a base that has them")


def find_empty_splits(task: Task, sides: Sides) -> Iterator[BadInput]:
    for split in (TRAIN, HELD_OUT):
        if all(side != split for _, side in sides):
            advice = _advise(task, [source for source, _ in sides])
            yield BadInput(f"dataset, held_out: expected at least one {split} row, got none{advice}")


def _advise(task: Task, sources: Sequence[Source]) -> str:
    if len(sources) > 1 and len(set(_join(task, sources))) == 1:
        return (
            f": all {len(sources)} rows belong together, by their cluster or their prompt; hold out a file of its own, "
            "or name another column as the cluster"
        )
    return "; try another seed or another share"


def render_row(index: int, source: Source, split: str, chat: Chat, task: Task, instruction: str) -> Row:
    groups: dict[str, Any] = {part: source.parts.get(part) for part in GROUPS}
    if task == "completion":
        before, text = source.parts.get("prompt", ""), source.parts["text"]
        chat.check_plain(before + text, source.place)
        return Row(index, split, before + text, text, ((before, chat.answer(text)),), **groups)
    messages = compose_messages(task, source, instruction)
    if task == PREFERENCE:
        chat.check_plain(source.parts["rejected"], f"{source.place}, rejected")
    for number, message in enumerate(messages):
        chat.check_plain(message["content"], f"{source.place}, message {number}" if task == "chat" else source.place)
    try:
        parts = tuple(chat.render_answered(messages, source.tools))
        rejected = _render_rejected(messages, source, chat) if task == PREFERENCE else None
    except BadInput as error:
        raise BadInput(f"{source.place}: {error.message}", code=error.code) from None
    if task == PREFERENCE:
        # One answer is trained, behind all that came before: an earlier turn of the assistant is part of the prompt.
        parts = (("".join(before + answer for before, answer in parts[:-1]) + parts[-1][0], parts[-1][1]),)
    if source.tools:
        turns = [message for message in messages if message["role"] == "assistant"]
        calls = next((number for number, turn in enumerate(turns) if "tool_calls" in turn), 0)
        answer = parts[calls][1].removesuffix(chat.end_of_turn)
        return Row(index, split, known_by(task, source), answer, parts, calls=calls, **groups)
    return Row(index, split, known_by(task, source), messages[-1]["content"], parts, rejected=rejected, **groups)


def _render_rejected(messages: Sequence[Message], source: Source, chat: Chat) -> str:
    """The rejected answer behind the same prompt. BadInput where the template alters it."""
    other = {"role": "assistant", "content": source.parts["rejected"]}
    return chat.render_answered([*messages[:-1], other])[-1][1]


def compose_messages(task: Task, source: Source, instruction: str) -> list[Message]:
    """How a row is put to the model, answers included: the instruction, if any, as the system's message."""
    if task == "chat":
        turns = list(source.messages)
    elif task == PREFERENCE:
        turns = [*source.messages, {"role": "assistant", "content": source.parts["chosen"]}]
    else:
        turns = [
            {"role": "user", "content": _question(task, source)},
            {"role": "assistant", "content": source.parts[_ANSWERS[task]]},
        ]
    system = [{"role": "system", "content": instruction}] if instruction and turns[0]["role"] != "system" else []
    return [*system, *turns]


def check_labels(sides: Sides, declared: Sequence[str], *, judges: bool = False) -> tuple[str, ...]:
    """Every label of a classification, sorted. BadInput for a row whose label is none, or another than its text has.

    `declared` are the labels there are; where it is empty, those that occur.
    """
    for error in find_wrong_labels(sides, declared, judges=judges):
        raise error
    return tuple(sorted(_all_labels(sides, declared)))


def _all_labels(sides: Sides, declared: Sequence[str]) -> set[str]:
    return set(declared) | {source.parts["label"] for source, _ in sides}


def find_wrong_labels(sides: Sides, declared: Sequence[str], *, judges: bool = False) -> Iterator[BadInput]:
    """Each row whose label is none, then what is wrong with the labels as a whole. `judges`: none is trained on."""
    seen: dict[str, Source] = {}
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
    if judges:
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


def write_rows(rows: Sequence[Row], about: About, folder: Path, dataset_key: bytes, *, blind: bool = False) -> str:
    """Writes rows.jsonl, row_digests.bin and dataset.json; the RFC 6962 root over the digests, as `sha256:…`.

    Clusters, and in a blind set slices too, are written as keyed digests."""
    lines = [_conceal_groups(row, dataset_key, blind=blind).encode() for row in rows]
    digests = [row_digest(dataset_key, index, line) for index, line in enumerate(lines)]
    (folder / ROWS_FILE).write_bytes(b"".join(line + b"\n" for line in lines))
    (folder / DIGESTS_FILE).write_bytes(b"".join(digests))
    (folder / ABOUT_FILE).write_bytes(encode_about(about))
    return f"sha256:{rows_root(digests).hex()}"


def _conceal_groups(row: Row, dataset_key: bytes, *, blind: bool) -> Row:
    cluster = None if row.cluster is None else cluster_digest(dataset_key, row.cluster).hex()
    part = row.slice if row.slice is None or not blind else slice_digest(dataset_key, row.slice).hex()
    return replace(row, cluster=cluster, slice=part)


def count_groups(rows: Sequence[Row]) -> dict[str, int]:
    """How many values each group has, of those that the rows have; and how many held-out rows have tools."""
    counts = {f"{name}s": len({getattr(row, name) for row in rows} - {None}) for name in GROUPS}
    counts[CALLED_ROWS] = sum(row.split == HELD_OUT and row.calls is not None for row in rows)
    return {name: count for name, count in counts.items() if count}


def load_about(folder: Path) -> About:
    return parse_about((folder / ABOUT_FILE).read_bytes())


def load_rows(folder: Path, split: str) -> list[Row]:
    """The rows of one side, in the file's order."""
    values = [parse_canonical(line) for line in (folder / ROWS_FILE).read_bytes().splitlines()]
    return [
        Row(**{**value, "parts": tuple((before, answer) for before, answer in value["parts"])})
        for value in values
        if value["split"] == split
    ]


def count_labels(rows: Sequence[Row], split: str) -> dict[str, int]:
    return dict(sorted(Counter(row.answer for row in rows if row.split == split).items()))
