"""Parsers of files that an import brings, of adapters and training checkpoints, and of requests to a worker."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache, partial
from typing import Any

from appliance.domain.data.kinds import GROUPS, PARTS, DatasetKind, Format
from appliance.ml.data import sources
from tests.fuzz.target import Target, add, load_file, of_bytes, of_text, read_object

CHAT = [{"role": "user", "content": "Which clause?"}, {"role": "assistant", "content": "payment"}]
RECORDS: Mapping[DatasetKind, dict[str, Any]] = {
    "classification": {"text": "Due in thirty days.", "label": "payment"},
    "instruction": {"instruction": "Name the clause.", "input": "", "output": "payment"},
    "completion": {"prompt": "Due", "text": "in thirty days"},
    "summarisation": {"text": "Due in thirty days.", "summary": "payment"},
    "question-answering": {"context": "Due in thirty days.", "question": "When?", "answer": "thirty days"},
    "chat": {
        "messages": [
            CHAT[0],
            {
                "role": "assistant",
                "tool_calls": [
                    {"id": "call12345", "type": "function", "function": {"name": "look_up", "arguments": {"a": 1}}}
                ],
            },
            {"role": "tool", "tool_call_id": "call12345", "content": "1"},
            CHAT[1],
        ],
        "tools": [{"type": "function", "function": {"name": "look_up", "parameters": {"type": "object"}}}],
    },
    "preference": {"prompt": CHAT[:1], "chosen": [CHAT[1]], "rejected": [{"role": "assistant", "content": "notice"}]},
}
REQUEST = {"messages": CHAT[:1], "max_tokens": 5, "temperature": 0.5, "top_p": 1.0, "seed": 1, "stop": ["."]}
CONFIG = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": ["q_proj"], "lora_dropout": 0.05}
GPTQ = {"bits": 4, "group_size": 128, "sym": True, "desc_act": False, "quant_method": "gptq"}


def _encode(kind: DatasetKind, form: Format) -> bytes:
    """Return a good file of some records."""
    record = {**RECORDS[kind], "slice": "a"}
    texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in record.items()}
    if form == "jsonl":
        return (json.dumps(record) + "\n").encode() * 3
    if form == "parquet":
        return _encode_parquet(texts)
    if form == "tsv":
        return "".join("\t".join(line) + "\n" for line in (texts, texts.values(), texts.values())).encode()
    quoted = ['"{}"'.format(text.replace('"', '""')) for text in texts.values()]
    return "".join(",".join(line) + "\r\n" for line in (texts, quoted, quoted)).encode()


def _encode_parquet(texts: Mapping[str, str]) -> bytes:
    import pyarrow
    from pyarrow import parquet

    sink = pyarrow.BufferOutputStream()
    parquet.write_table(pyarrow.table({name: [text] * 3 for name, text in texts.items()}), sink)
    return bytes(sink.getvalue().to_pybytes())


def _parse_source(kind: DatasetKind, form: Format, data: bytes) -> object:
    columns = {name: name for name in (*PARTS[kind], *GROUPS[1:])}
    return sources.parse_source(data, form, kind, columns)


for _kind in RECORDS:
    for _form in ("csv", "tsv", "jsonl"):
        of_bytes(
            sources.parse_source,
            partial(lambda kind, form: [_encode(kind, form)], _kind, _form),
            "lines" if _form == "jsonl" else "text",
            parse=partial(_parse_source, _kind, _form),
            name=f"{_form} {_kind}",
        )
of_bytes(
    sources.parse_source,
    lambda: [_encode("classification", "parquet")],
    "bytes",
    parse=partial(_parse_source, "classification", "parquet"),
    name="parquet",
)
of_text(sources.parse_json, ['{"a":[1]}'], "row")


def _fraction(data: bytes) -> object:
    from appliance.ml.data.rows import parse_fraction

    return parse_fraction(data.decode("utf-8", "surrogateescape"))


def _adapter_config(data: bytes) -> object:
    from appliance.ml.inference.adapters import parse_adapter_config

    return parse_adapter_config(data)


def _checkpoint(data: bytes) -> object:
    from appliance.ml.training.checkpoint import parse_checkpoint

    return parse_checkpoint(data)


@cache
def _checkpoint_file() -> bytes:
    import torch

    from appliance.ml.training import checkpoint

    counts = {"step": 1, "steps": 2, "tokens": 3, "trained_tokens": 3, "version": checkpoint.VERSION}
    return checkpoint._encode({"losses": torch.zeros(1, dtype=torch.float64)}, counts)


def _headers(data: bytes) -> object:
    from appliance.ml.quantised.headers import read_headers

    return load_file(lambda path: read_headers(path.parent, [path.name]), data)


def _quantised(data: bytes) -> object:
    from appliance.ml.quantised.nf4 import read_quantised

    return read_quantised(read_object(data), GPTQ, "base")


def _gptq(data: bytes) -> object:
    from appliance.ml.quantised.gptq import parse_gptq

    return parse_gptq(read_object(data), "base")


def _request(data: bytes) -> object:
    from appliance.ml.inference.request import parse_request

    return parse_request(read_object(data))


def _json(value: object) -> list[bytes]:
    return [json.dumps(value).encode()]


NEEDS_TORCH = ("ml.data.rows", "ml.inference", "ml.training", "ml.quantised")
"""Beginnings of the names of parsers whose modules import torch."""
add("ml.data.rows.parse_fraction", Target(_fraction, lambda: [b"0.1"], "text"))
add("ml.inference.adapters.parse_adapter_config", Target(_adapter_config, partial(_json, CONFIG), "json"))
add("ml.inference.request.parse_request", Target(_request, partial(_json, REQUEST), "json"))
add("ml.training.checkpoint.parse_checkpoint", Target(_checkpoint, lambda: [_checkpoint_file()], "bytes"))
add("ml.quantised.gptq.parse_gptq", Target(_gptq, partial(_json, GPTQ), "json"))
add("ml.quantised.nf4.read_quantised", Target(_quantised, partial(_json, {"quantization_config": GPTQ}), "json"))
add("ml.quantised.headers.read_headers", Target(_headers, lambda: [_checkpoint_file()], "bytes"))
