"""Tokenizer and chat template: conversion of messages and text to tokens and back, in all workers.

A chat template is code that came with the model. It runs in a sandboxed worker within the bounds of `template.py` and
without a clock, so the same messages always give the same prompt. No torch.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Template
from tokenizers import Tokenizer

from appliance.domain.data.tool_calls import canonical_call
from appliance.errors import BadInput
from appliance.formats.core.digest import digest_file
from appliance.ml.model.bounds import refuse_panics
from appliance.ml.model.calls import PROBE, CallForm, find_form
from appliance.ml.model.template import compile_template, render_template

TEMPLATE_FILE = "chat_template.jinja"
TOKENIZER_FILE = "tokenizer.json"
TOKENIZER_CONFIG_FILE = "tokenizer_config.json"
CONFIG_FILE = "config.json"

_UNTOKENIZED = f"{TOKENIZER_FILE}: expected to tokenize this text"
_SENTINEL = "the answer stands here"
_ANSWER = {"role": "assistant", "content": _SENTINEL}
_MARK = re.compile(r"<\|\w{1,40}\|>|<(?:start|end)_of_\w{1,20}>", re.ASCII)
"""Texts that are control tokens in any published template that writes them."""
_LEAST_SHARE = 0.9
"""Smallest expected ratio of tokens to embedding rows; published embeddings are padded by a few per cent."""
_MOST_NAMED = 4


Message = Mapping[str, Any]
"""A chat message: `role` and `content`.

An assistant message may have `tool_calls` with objects as arguments; a tool message has the call's id and name.
"""


def uses_tools(messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]) -> bool:
    """Return True if the messages require a template that supports tools."""
    return bool(tools) or any(message["role"] == "tool" or message.get("tool_calls") for message in messages)


@dataclass(frozen=True)
class Chat:
    """A tokenizer and a template.

    `end_of_turn` is the control token that the template writes after an assistant turn. `calls` is the form of its tool
    calls; if None, `toolless` says what the template lacks. `marks` are the ids of control tokens that are part of a
    call.
    """

    tokenizer: Tokenizer
    template: Template
    variables: Mapping[str, str]
    control_tokens: frozenset[str]
    end_of_turn: str
    calls: CallForm | None = None
    toolless: str = "expected a template that takes tools, got one that was not asked"
    marks: frozenset[int] = frozenset()

    def render(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = ()) -> str:
        """Return the prompt for the next assistant turn.

        Raises:
            BadInput: a message contains a control token.
        """
        self._check(messages, tools)
        return self._render(messages, tools, ask=True)

    def render_answered(
        self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = ()
    ) -> list[tuple[str, str]]:
        """Return a conversation as pairs (preceding text, assistant turn), in order.

        Each assistant turn follows exactly the prompt that serving would use, and ends with the end-of-turn token.

        Raises:
            BadInput: the template drops or changes an assistant turn, or writes an earlier turn differently later.
        """
        self._check(messages, tools)
        whole = self._render(messages, tools, ask=False)
        parts, end = [], 0
        for place, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            prompt = self._render(messages[:place], tools, ask=True)
            answer = self._write_answer(messages[: place + 1], tools, prompt)
            last = place == len(messages) - 1
            written = answer.removesuffix(self.end_of_turn) if last else answer
            if not whole.startswith(prompt + written, 0) or len(prompt) < end:
                got = whole[len(prompt) :][:40] if whole.startswith(prompt) else "another conversation before it"
                raise _altered(place, got)
            parts.append((prompt[end:], answer))
            end = len(prompt + answer)
        return parts

    def _write_answer(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]], prompt: str) -> str:
        """Return the last message as the model should write it, with calls in the template's form."""
        message = messages[-1]
        if not message.get("tool_calls"):
            return self.answer(message["content"])
        assert self.calls is not None
        whole = self._render(messages, tools, ask=False)
        written, ended, rest = whole[len(prompt) :].partition(self.end_of_turn)
        if not whole.startswith(prompt) or not ended or rest.strip():
            raise _altered(len(messages) - 1, whole[len(prompt) :][:40])
        said, calls = self.calls.read_answer(written)
        wanted = [canonical_call(**call["function"]) for call in message["tool_calls"]]
        if said != message["content"].strip() or [canonical_call(one.name, one.arguments) for one in calls] != wanted:
            raise _altered(len(messages) - 1, written[:80])
        return written + ended

    def _check(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]) -> None:
        """Refuse texts in messages or tools that only the template may write."""
        uses = uses_tools(messages, tools)
        if uses and self.calls is None:
            raise BadInput(f"{TEMPLATE_FILE}: {self.toolless}")
        reserved = self.calls.reserved if uses and self.calls is not None else ()
        for what, value in (*((f"message {place}", one) for place, one in enumerate(messages)), ("tools", tools)):
            for text in _texts(value):
                self.check_plain(text, what)
                for one in reserved:
                    if one in text:
                        raise BadInput(f"{what}: expected text without the template's own {one!r}, got it")

    def _render(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]], *, ask: bool) -> str:
        return _render(self.template, self.variables, messages, tools, ask=ask)

    def check_plain(self, text: str, what: str) -> None:
        """Refuse text with a control token, which would end the turn and continue in another role.

        Raises:
            BadInput: the text contains a control token.
        """
        for token in self.control_tokens:
            if token in text:
                raise BadInput(f"{what}: expected text without control tokens, got {token!r}")

    def encode(self, text: str) -> list[int]:
        """Return the token ids of a text, which may contain control tokens; adds no tokens."""
        with refuse_panics(_UNTOKENIZED):
            ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def encode_all(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the token ids of several texts, without blocking the process's other threads."""
        with refuse_panics(_UNTOKENIZED):
            found = self.tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in found]

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of tokens without control tokens, except those that begin calls.

        An incomplete character at the end becomes U+FFFD.
        """
        with refuse_panics(_UNTOKENIZED):
            if self.marks.isdisjoint(ids):
                return self.tokenizer.decode(list(ids), skip_special_tokens=True)
            text, part = "", list[int]()
            for number in ids:
                if number in self.marks:
                    text += self.tokenizer.decode(part, skip_special_tokens=True) + str(
                        self.tokenizer.id_to_token(number)
                    )
                    part = []
                else:
                    part.append(number)
            return text + self.tokenizer.decode(part, skip_special_tokens=True)

    def answer(self, label: str) -> str:
        """Return the target text for a label: the label and the end-of-turn token."""
        return label + self.end_of_turn

    def stop_ids(self) -> frozenset[int]:
        """Return the ids of the tokens that end an output."""
        ends = {self.end_of_turn, self.variables.get("eos_token", self.end_of_turn)}
        return frozenset(number for token in ends if (number := self.tokenizer.token_to_id(token)) is not None)


def load_chat(folder: Path) -> Chat:
    """Return the tokenizer and template of a converted base.

    Raises:
        BadInput: the template has no end-of-turn token or does not keep its prompt; the message says what is missing.
    """
    tokenizer = Tokenizer.from_file(str(folder / TOKENIZER_FILE))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    config = json.loads((folder / TOKENIZER_CONFIG_FILE).read_bytes())
    variables = {
        key: text for key in ("bos_token", "eos_token", "unk_token", "pad_token") if (text := _text(config, key))
    }
    source = (folder / TEMPLATE_FILE).read_text("utf-8")
    control = frozenset(token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special)
    template = compile_template(source, TEMPLATE_FILE)
    end = _find_end_of_turn(template, variables, control)
    try:
        calls, lacking = (
            find_form(lambda messages, ask: _render(template, variables, messages, [PROBE], ask=ask), end),
            "",
        )
    except BadInput as error:
        calls, lacking = None, error.message.removeprefix(f"{TEMPLATE_FILE}: ")
    marks = control.intersection(() if calls is None else calls.reserved)
    ids = frozenset(number for text in marks if (number := tokenizer.token_to_id(text)) is not None)
    return Chat(tokenizer, template, variables, control, end, calls, lacking, ids)


def list_mismatches(folder: Path, chat: Chat, words: int) -> list[str]:
    """Return warnings if a tokenizer seems to belong to another model.

    It has far fewer tokens than the embedding has rows (`words`), or lacks control tokens that the template writes.
    Invisible characters give a warning, too.
    """
    found = []
    if (size := chat.tokenizer.get_vocab_size()) < _LEAST_SHARE * words:
        found.append(
            f"{TOKENIZER_FILE} has {size} tokens, and the embedding {words} rows: is it this model's tokenizer?"
        )
    question = [{"role": "user", "content": _SENTINEL}]
    written = "".join(
        _render(chat.template, chat.variables, messages, ask=ask)
        for messages, ask in ((question, True), ([*question, _ANSWER], False))
    )
    marks = sorted(mark for mark in set(_MARK.findall(written)) if chat.tokenizer.token_to_id(mark) is None)
    if marks:
        some = ", ".join(marks[:_MOST_NAMED])
        found.append(f"{TEMPLATE_FILE} writes {some}, and {TOKENIZER_FILE} has no such token: it is read as plain text")
    texts = {TEMPLATE_FILE: (folder / TEMPLATE_FILE).read_text("utf-8")}
    texts[f"{TOKENIZER_FILE}, control tokens"] = "".join(chat.control_tokens)
    for name, text in texts.items():
        if unseen := sorted({f"U+{ord(one):04X}" for one in text if unicodedata.category(one) == "Cf"}):
            found.append(f"{name}: has characters that cannot be seen: {', '.join(unseen[:_MOST_NAMED])}")
    return found


def read_context_length(folder: Path) -> int:
    """Return the context length of a converted base, in tokens."""
    return int(json.loads((folder / CONFIG_FILE).read_bytes())["max_position_embeddings"])


def digest_template(folder: Path) -> str:
    return digest_file(folder / TEMPLATE_FILE)


def digest_tokenizer(folder: Path) -> str:
    return digest_file(folder / TOKENIZER_FILE)


def _text(config: Mapping[str, Any], key: str) -> str | None:
    """Return the text of a special token, stored as a string or as an object with `content`."""
    value = config.get(key)
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None


def _texts(value: object) -> Iterator[str]:
    """Yield every text in a value, names of fields included."""
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, str):
            yield one
        elif isinstance(one, Mapping):
            waiting += [*one, *one.values()]
        elif isinstance(one, list | tuple):
            waiting += one


def _altered(place: int, got: str) -> BadInput:
    return BadInput(
        f"{TEMPLATE_FILE}: expected the answer in message {place} as it was written, got {got!r}", code="answer-altered"
    )


def _render(
    template: Template,
    variables: Mapping[str, str],
    messages: Sequence[Message],
    tools: Sequence[Mapping[str, Any]] = (),
    *,
    ask: bool,
) -> str:
    """Render messages like `apply_chat_template` of transformers; `tools` is defined only if there are tools."""
    values = {**variables, "messages": [dict(item) for item in messages], "add_generation_prompt": ask}
    return render_template(template, {**values, "tools": list(tools)} if tools else values, TEMPLATE_FILE)


def _find_end_of_turn(template: Template, variables: Mapping[str, str], control: frozenset[str]) -> str:
    """Return the token that the template writes after an assistant turn, found by rendering one."""
    question = {"role": "user", "content": "a question"}
    prompt = _render(template, variables, [question], ask=True)
    whole = _render(template, variables, [question, _ANSWER], ask=False)
    if not whole.startswith(prompt + _SENTINEL):
        raise BadInput(
            f"{TEMPLATE_FILE}: expected the prompt to be the start of the answered conversation, got other text"
        )
    tail = whole[len(prompt) + len(_SENTINEL) :]
    found = [token for token in control if tail.startswith(token)]
    if found:
        return max(found, key=len)
    if "eos_token" in variables and variables["eos_token"] in control:
        return variables["eos_token"]
    raise BadInput(f"{TEMPLATE_FILE}: expected a control token after an answer, got {tail[:40]!r} and no eos_token")
