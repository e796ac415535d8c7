"""Every dataset kind: the answers are trained, to the letter, and what cannot be trained is refused by its line."""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from appliance.domain.data.kinds import DatasetKind, check_parts, map_columns
from appliance.errors import BadInput
from appliance.ml.data import rows as data
from appliance.ml.data.rows import tokenize_row
from appliance.ml.data.sources import SourceRecord, parse_source
from appliance.ml.model.chat import Chat, load_chat
from scripts.kit.tiny_model import TEMPLATE

REQUESTED = "<|im_start|>system\nYou answer.<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
TURNS = [
    {"role": "user", "content": "Hi."},
    {"role": "assistant", "content": "Yes?"},
    {"role": "user", "content": "Pay me"},
    {"role": "assistant", "content": "No."},
]
RECORDS: dict[DatasetKind, list[dict[str, Any]]] = {
    "classification": [{"text": "one", "label": "a"}],
    "instruction": [{"instruction": "Add.", "input": "1 2", "output": "3"}, {"instruction": "Go", "output": "No"}],
    "completion": [{"text": "Once upon a time"}, {"prompt": "It was ", "text": "late."}],
    "summarisation": [{"text": "A long story", "summary": "Short"}],
    "question-answering": [{"context": "It is late.", "question": "What is it?", "answer": "late"}],
    "chat": [{"messages": TURNS}],
    "preference": [
        {"prompt": "Hi.", "chosen": "Yes?", "rejected": "No."},
        {"chosen": TURNS, "rejected": [*TURNS[:3], {"role": "assistant", "content": "Soon."}]},
    ],
}
PARTS: dict[DatasetKind, list[list[tuple[str, str]]]] = {
    "classification": [[(REQUESTED.format("one"), "a<|im_end|>")]],
    "instruction": [
        [(REQUESTED.format("Add.\n\n1 2"), "3<|im_end|>")],
        [(REQUESTED.format("Go"), "No<|im_end|>")],
    ],
    "completion": [[("", "Once upon a time<|im_end|>")], [("It was ", "late.<|im_end|>")]],
    "summarisation": [[(REQUESTED.format("A long story"), "Short<|im_end|>")]],
    "question-answering": [[(REQUESTED.format("It is late.\n\nWhat is it?"), "late<|im_end|>")]],
    "chat": [
        [
            (REQUESTED.format("Hi."), "Yes?<|im_end|>"),
            ("\n<|im_start|>user\nPay me<|im_end|>\n<|im_start|>assistant\n", "No.<|im_end|>"),
        ]
    ],
    "preference": [
        [(REQUESTED.format("Hi."), "Yes?<|im_end|>")],
        [
            (
                REQUESTED.format("Hi.") + "Yes?<|im_end|>\n<|im_start|>user\nPay me<|im_end|>\n<|im_start|>assistant\n",
                "No.<|im_end|>",
            )
        ],
    ],
}


@pytest.fixture(scope="module")
def chat(base_folder: Path) -> Chat:
    return load_chat(base_folder)


def _jsonl(*records: Any) -> bytes:
    return b"".join(json.dumps(record).encode() + b"\n" for record in records)


def _read(dataset_kind: DatasetKind, *records: Any) -> list[SourceRecord]:
    return parse_source(_jsonl(*records), "jsonl", dataset_kind, map_columns(dataset_kind, {}))


def _render(
    dataset_kind: DatasetKind, sources: list[SourceRecord], chat: Chat, instruction: str = ""
) -> list[data.RenderedRow]:
    sides = [(source, data.TRAIN) for source in sources] + [(sources[0], data.HELD_OUT)]
    return data.render_rows(sides, chat, dataset_kind, instruction=instruction)[: len(sources)]


@pytest.mark.parametrize("dataset_kind", RECORDS)
def test_each_tasks_rows_are_the_prompts_a_client_sends_and_the_answers(dataset_kind: DatasetKind, chat: Chat) -> None:
    rows = _render(dataset_kind, _read(dataset_kind, *RECORDS[dataset_kind]), chat)
    assert [list(row.parts) for row in rows] == PARTS[dataset_kind]
    for row in rows:
        sample = tokenize_row(row, chat, 256, "row")
        whole = chat.tokenizer.decode(list(sample.ids), skip_special_tokens=False)
        assert whole == "".join(before + answer for before, answer in row.parts)
        trained = [chat.tokenizer.decode(list(sample.ids[a:b]), skip_special_tokens=False) for a, b in sample.spans]
        answers = [answer for _, answer in row.parts]
        if row.parts[0][0]:
            assert trained == answers
        else:  # the first token of a text has nothing that it could be predicted from
            assert answers[0].endswith(trained[0]) and sample.spans[0] == (1, len(sample.ids))


@pytest.mark.parametrize("kind", ["csv", "tsv"])
@pytest.mark.parametrize("dataset_kind", RECORDS)
def test_every_task_is_read_from_a_table_as_from_lines_of_json(dataset_kind: DatasetKind, kind: str) -> None:
    """Messages are in a cell as JSON; in a TSV quotation marks are characters like others."""
    record = RECORDS[dataset_kind][0]
    cells = [value if isinstance(value, str) else json.dumps(value) for value in record.values()]
    if kind == "csv":
        csv.writer(out := io.StringIO()).writerows([list(record), cells])
        content = out.getvalue()
    else:
        content = "\t".join(record) + "\n" + "\t".join(cells) + "\n"
    found = parse_source(content.encode(), kind, dataset_kind, map_columns(dataset_kind, {}))
    expected = _read(dataset_kind, record)
    assert [(s.parts, s.messages) for s in found] == [(s.parts, s.messages) for s in expected]
    assert found[0].place == "dataset, line 2"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"text\tlabel\none\ta\ntwo\n", "dataset, line 3: expected 2 fields, got 1"),
        (b"text\tlabel\none\ta\ttwo\n", "dataset, line 2: expected 2 fields, got 3"),
        (b"text\tlabel\none\ta\ntwo\t\n", "dataset, line 3, label: expected a text, got nothing"),
        (
            b"text,label\none,a\n",
            "dataset, line 1: expected one column 'text' and one column 'label', got the columns 'text,label'; "
            "if line 1 is a row, put a line with the names of its columns, such as text,label, before it; "
            "if yours has another name: --column text=NAME --column label=NAME",
        ),
    ],
)
def test_a_broken_tsv_is_refused_naming_the_line(content: bytes, message: str) -> None:
    with pytest.raises(BadInput) as caught:
        parse_source(content, "tsv", "classification", map_columns("classification", {}))
    assert caught.value.message == message


def test_a_chat_is_asked_turn_by_turn_as_it_was_trained(chat: Chat) -> None:
    """The texts before each trained answer are together the prompt that serving renders for that turn."""
    (row,) = _render("chat", _read("chat", {"messages": TURNS}), chat, "Be brief.")
    (first, yes), (second, _) = row.parts
    system = {"role": "system", "content": "Be brief."}
    assert first == chat.render([system, TURNS[0]])
    assert first + yes + second == chat.render([system, *TURNS[:3]])
    own = [{"role": "system", "content": "Mine."}, *TURNS]
    assert "Be brief." not in _render("chat", _read("chat", {"messages": own}), chat, "Be brief.")[0].parts[0][0]


def test_messages_are_read_from_text_where_a_file_holds_nothing_else() -> None:
    cell = json.dumps(TURNS).replace('"', '""')
    assert parse_source(f'messages\n"{cell}"\n'.encode(), "csv", "chat", {"messages": "messages"})[0].messages == (
        *TURNS,
    )


@pytest.mark.parametrize(
    ("dataset_kind", "record", "message"),
    [
        ("instruction", {"instruction": "Go", "output": ""}, "line 1, output: expected a text, got nothing"),
        ("completion", {"text": " "}, "line 1, text: expected a text, got only white space"),
        ("completion", {"prompt": "x"}, "line 1: expected a value in 'text', got the fields prompt"),
        ("summarisation", {"text": "x", "summary": ["y"]}, "line 1, summary: expected text, got list"),
        ("chat", {"messages": []}, "line 1, messages: expected 1 to 1000 messages, got 0"),
        ("chat", {"messages": "[1"}, "line 1, messages: expected a JSON object"),
        ("chat", {"messages": [{"role": "user"}]}, "line 1, message 0: expected role and content, got the fields"),
        ("chat", {"messages": [{"role": "robot", "content": "x"}]}, "message 0: expected the role system, user, assis"),
        ("chat", {"messages": TURNS[:1]}, "line 1: expected a turn of the assistant, got none"),
        ("chat", {"messages": TURNS[:3]}, "line 1: expected the assistant's turn at the end, got the user's"),
        ("chat", {"messages": TURNS[1:]}, "line 1, message 0: expected the role user, got assistant"),
        ("chat", {"messages": [*TURNS, *TURNS[1:2]]}, "line 1, message 4: expected the role user, got assistant"),
        (
            "chat",
            {"messages": [TURNS[0], {"role": "system", "content": "x"}, TURNS[1]]},
            "message 1: expected the role",
        ),
        ("chat", {"messages": [TURNS[0], {"role": "assistant", "content": " "}]}, "line 1, message 1: expected a text"),
    ],
)
def test_a_record_that_does_not_fit_its_task_is_refused_by_line(
    dataset_kind: DatasetKind, record: Any, message: str
) -> None:
    with pytest.raises(BadInput) as caught:
        _read(dataset_kind, record)
    assert message in caught.value.message
    assert caught.value.code == ("nothing-to-train" if "got none" in message else "bad-input")


def test_a_column_that_was_named_must_be_there_and_a_part_must_be_the_tasks() -> None:
    columns = map_columns("instruction", {"input": "given"})
    with pytest.raises(BadInput, match="line 1: expected one column 'given', got the columns 'instruction, output'"):
        parse_source(b"instruction,output\na,b\n", "csv", "instruction", columns)
    with pytest.raises(BadInput, match="column 'label': expected one of messages, tools, cluster, slice for chat"):
        check_parts("chat", {"label": "x"})


def test_a_label_that_is_none_is_refused_by_line() -> None:
    sources = _read("classification", {"text": "one", "label": "a"}, {"text": "two", "label": "c"})
    sides = [(source, data.TRAIN) for source in sources]
    with pytest.raises(BadInput, match="line 2: expected one of the labels a, b, got 'c'"):
        data.check_labels(sides, ["a", "b"])
    with pytest.raises(BadInput, match="label 'b': expected a row in the training split, got none"):
        data.check_labels(sides[:1], ["a", "b"])


SAME_PROMPTS: dict[DatasetKind, list[dict[str, Any]]] = {
    "chat": [
        {"messages": TURNS},
        {"messages": TURNS[:2]},
        {"messages": [{"role": "user", "content": " hi. "}, {"role": "assistant", "content": "What is it?"}]},
    ],
    "completion": [{"prompt": "It was ", "text": "late."}, {"prompt": "It was", "text": "too early."}],
    "instruction": [{"instruction": "Add.", "output": "3"}, {"instruction": "Add.", "output": "4"}],
    "preference": [*RECORDS["preference"][:1], {"prompt": "hi.", "chosen": "Oh?", "rejected": "Go."}],
}


@pytest.mark.parametrize("dataset_kind", SAME_PROMPTS)
def test_rows_with_one_prompt_are_on_one_side_whatever_the_answers_are(dataset_kind: DatasetKind) -> None:
    first, *others = _read(dataset_kind, *SAME_PROMPTS[dataset_kind])
    for seed in range(20):
        sides = data.split_sources(dataset_kind, [first, *others], seed, Fraction(1, 2))
        assert len({side for _, side in sides}) == 1
    assert len(list(data.find_shared(dataset_kind, [first], others))) == len(others)


def test_another_beginning_is_another_prompt() -> None:
    system = {"role": "system", "content": "You answer."}
    chats = _read("chat", {"messages": TURNS}, {"messages": [system, *TURNS]}, {"messages": TURNS[2:]})
    assert len({data.prompt_of("chat", one) for one in chats}) == 3
    assert len({data.known_by("chat", one) for one in _read("chat", *SAME_PROMPTS["chat"])}) == 3, "but three texts"
    assert data.prompt_of("completion", _read("completion", {"text": "Once"})[0]) == "Once"


def test_a_row_of_the_held_out_file_that_is_trained_on_is_refused_by_line() -> None:
    """Case and spacing make no other row; nor does another label or answer to the same question."""
    train = _read("classification", {"text": "one  word", "label": "a"}, {"text": "two", "label": "b"})
    lines = _jsonl({"text": "three", "label": "b"}, {"text": " One word", "label": "b"})
    held_out = parse_source(lines, "jsonl", "classification", map_columns("classification", {}), "held-out file")
    with pytest.raises(BadInput) as caught:
        data.join_sources("classification", train, held_out)
    assert caught.value.message == (
        "held-out file, line 2: expected a prompt that is not trained on, got that of dataset, line 1"
    )
    assert [side for _, side in data.join_sources("classification", train, held_out[:1])] == ["train"] * 2 + [
        "held-out"
    ]


@pytest.mark.parametrize("dataset_kind", RECORDS)
def test_equal_rows_fall_on_one_side_whatever_the_seed(dataset_kind: DatasetKind) -> None:
    record = RECORDS[dataset_kind][0]
    sources = _read(dataset_kind, *([record] * 3))
    for seed in range(20):
        assert len({side for _, side in data.split_sources(dataset_kind, sources, seed, Fraction(1, 2))}) == 1


TAMPERED = {
    "drops": "(message['content'] if message['content'] != 'No.' else '')",
    "trims": "(message['content'] | trim)",
    "cuts what is past": "(message['content'] if loop.last or message['role'] == 'user' else message['content'][:2])",
}


@pytest.mark.parametrize("change", TAMPERED)
def test_a_template_that_drops_or_alters_an_answer_is_refused_by_line(
    change: str, base_folder: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(base_folder, tmp_path / "base"))
    template = TEMPLATE.replace("message['content']", TAMPERED[change])
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    turns = [*TURNS[:3], {"role": "assistant", "content": "No." if change != "trims" else " No."}]
    with pytest.raises(
        BadInput, match=r"line 1: chat_template\.jinja: expected the answer in message \d as it"
    ) as caught:
        _render("chat", _read("chat", {"messages": turns}), load_chat(folder))
    assert caught.value.code == "answer-altered"


def _stripping(chat: Chat) -> None:
    from tokenizers import normalizers

    chat.tokenizer.normalizer = normalizers.NFKC()


@pytest.mark.parametrize(
    ("answer", "limit", "change", "message"),
    [
        ("fine print", 256, _stripping, ""),
        (
            "\N{LATIN SMALL LIGATURE FI}ne",
            256,
            _stripping,
            "here: expected tokens that give back the answer, got 'fine'",
        ),
        ("a" * 99, 64, None, r"here: expected at most 64 tokens \(max_length\), got \d+"),
    ],
)
def test_a_row_whose_tokens_are_not_its_answer_or_too_many_is_refused(
    base_folder: Path, answer: str, limit: int, change: Callable[[Chat], None] | None, message: str
) -> None:
    chat = load_chat(base_folder)
    if change:
        change(chat)
    (row,) = _render("summarisation", _read("summarisation", {"text": "t", "summary": answer}), chat)
    if not message:
        assert tokenize_row(row, chat, limit, "here").trained_tokens > 1
        return
    with pytest.raises(BadInput, match=message):
        tokenize_row(row, chat, limit, "here")


def test_a_completion_has_no_instruction(chat: Chat) -> None:
    with pytest.raises(BadInput, match="instruction: expected none for completion"):
        _render("completion", _read("completion", {"text": "x"}), chat, "Write.")
