"""A chat whose template supports tools, for tests without a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from appliance.ml.model.chat import Chat, load_chat
from scripts.kit.tiny_model import SPECIAL, build_tokenizer
from scripts.kit.tool_templates import MISTRAL_TOKENS, TEMPLATES

FIND: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "find",
        "description": "Finds clauses.",
        "parameters": {
            "type": "object",
            "properties": {"kind": {"enum": ["payment", "secrecy"]}, "most": {"type": "integer"}},
            "required": ["kind"],
            "additionalProperties": False,
        },
    },
}
STOP: dict[str, Any] = {"type": "function", "function": {"name": "stop"}}
TOOLS = [FIND, STOP]
CALL: dict[str, Any] = {
    "id": "call00000",
    "type": "function",
    "function": {"name": "find", "arguments": {"kind": "payment", "most": 2}},
}
OTHER: dict[str, Any] = {"id": "call00001", "type": "function", "function": {"name": "stop", "arguments": {}}}
ASKED: dict[str, Any] = {"role": "user", "content": "What is due?"}
CALLED: dict[str, Any] = {"role": "assistant", "content": "", "tool_calls": [CALL]}
RESULT: dict[str, Any] = {"role": "tool", "content": "the fee", "tool_call_id": "call00000", "name": "find"}
SAID: dict[str, Any] = {"role": "assistant", "content": "The fee is due."}
TURNS = [ASKED, CALLED, RESULT, SAID]


def toolful_chat(folder: Path, form: str) -> Chat:
    """Of the tiny tokenizer, with the control tokens of the form's models."""
    folder.mkdir()
    tokenizer = build_tokenizer()
    if form.startswith("mistral"):
        tokenizer.add_special_tokens(list(MISTRAL_TOKENS))
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"bos_token": SPECIAL[1], "eos_token": SPECIAL[2]}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "chat_template.jinja").write_text(TEMPLATES[form], encoding="utf-8")
    return load_chat(folder)
