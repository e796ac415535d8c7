"""Text to tokens and back, and the model's own chat template: what every worker that touches words goes through.

A chat template is code that came with the model. It is rendered here, in a sandboxed worker and within bounds
(`template.py`), without a clock, so that the same messages always give the same prompt. No torch.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Template
from tokenizers import Tokenizer

from appliance.errors import BadInput
from appliance.formats.core.digest import digest_file
from appliance.ml.model.template import compile_template, render_template

TEMPLATE_FILE = "chat_template.jinja"
TOKENIZER_FILE = "tokenizer.json"
TOKENIZER_CONFIG_FILE = "tokenizer_config.json"
CONFIG_FILE = "config.json"

_SENTINEL = "the answer stands here"


@dataclass(frozen=True)
class Chat:
    """A tokenizer and a template. `end_of_turn` is the control token that the template writes after an answer."""

    tokenizer: Tokenizer
    template: Template
    variables: Mapping[str, str]
    control_tokens: frozenset[str]
    end_of_turn: str

    def render(self, messages: Sequence[Mapping[str, str]]) -> str:
        """The prompt that asks for the next answer; BadInput where a message smuggles a control token."""
        for place, message in enumerate(messages):
            self.check_plain(message["content"], f"message {place}")
        return _render(self.template, self.variables, messages, ask=True)

    def render_answered(self, messages: Sequence[Mapping[str, str]]) -> list[tuple[str, str]]:
        """An answered conversation as (the text before, answer) for each of the assistant's turns, in order.

        Each answer follows the very prompt that asks for it when served, and ends with the end of its turn. BadInput
        where the template drops or alters an answer, or writes an earlier turn otherwise once it is past.
        """
        for place, message in enumerate(messages):
            self.check_plain(message["content"], f"message {place}")
        whole = _render(self.template, self.variables, messages, ask=False)
        parts, end = [], 0
        for place, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            prompt = _render(self.template, self.variables, messages[:place], ask=True)
            answer = self.answer(message["content"])
            last = place == len(messages) - 1
            if not whole.startswith(prompt + (message["content"] if last else answer), 0) or len(prompt) < end:
                got = whole[len(prompt) :][:40] if whole.startswith(prompt) else "another conversation before it"
                raise BadInput(
                    f"{TEMPLATE_FILE}: expected the answer in message {place} as it was written, got {got!r}",
                    code="answer-altered",
                )
            parts.append((prompt[end:], answer))
            end = len(prompt + answer)
        return parts

    def check_plain(self, text: str, what: str) -> None:
        """Refuses text that contains a control token: it would end the turn and continue in another role's name."""
        for token in self.control_tokens:
            if token in text:
                raise BadInput(f"{what}: expected text without control tokens, got {token!r}")

    def encode(self, text: str) -> list[int]:
        """Token ids, control tokens included, nothing added."""
        with _tokenizer_errors():
            ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def encode_all(self, texts: Sequence[str]) -> list[list[int]]:
        """The same of several texts, without holding up the process's other threads."""
        with _tokenizer_errors():
            found = self.tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in found]

    def decode(self, ids: Sequence[int]) -> str:
        """Text without control tokens; a character that is not complete yet ends as U+FFFD."""
        with _tokenizer_errors():
            return self.tokenizer.decode(list(ids), skip_special_tokens=True)

    def answer(self, label: str) -> str:
        """What the model is to write: the label and the end of its turn."""
        return label + self.end_of_turn

    def stop_ids(self) -> frozenset[int]:
        """The ids that end an answer."""
        ends = {self.end_of_turn, self.variables.get("eos_token", self.end_of_turn)}
        return frozenset(number for token in ends if (number := self.tokenizer.token_to_id(token)) is not None)


@contextmanager
def _tokenizer_errors() -> Iterator[None]:
    """The library's panics, which are no Exception, as BadInput: one text must not end a worker for all."""
    try:
        yield
    except BaseException as error:
        if type(error).__module__ != "pyo3_runtime":
            raise
        raise BadInput(f"{TOKENIZER_FILE}: expected to tokenize this text, got: {str(error)[:200]}") from None


def load_chat(folder: Path) -> Chat:
    """The tokenizer and template of a converted base; BadInput names what a template lacks."""
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
    return Chat(tokenizer, template, variables, control, end)


def read_context_length(folder: Path) -> int:
    """How many tokens a converted base takes at once."""
    return int(json.loads((folder / CONFIG_FILE).read_bytes())["max_position_embeddings"])


def digest_template(folder: Path) -> str:
    return digest_file(folder / TEMPLATE_FILE)


def digest_tokenizer(folder: Path) -> str:
    return digest_file(folder / TOKENIZER_FILE)


def _text(config: Mapping[str, Any], key: str) -> str | None:
    """A special token's text: a string, or an object with its content."""
    value = config.get(key)
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None


def _render(
    template: Template, variables: Mapping[str, str], messages: Sequence[Mapping[str, str]], *, ask: bool
) -> str:
    values = {**variables, "messages": [dict(item) for item in messages], "add_generation_prompt": ask}
    return render_template(template, values, TEMPLATE_FILE)


def _find_end_of_turn(template: Template, variables: Mapping[str, str], control: frozenset[str]) -> str:
    """Renders an answered conversation and reads what the template wrote after the answer."""
    question = {"role": "user", "content": "a question"}
    prompt = _render(template, variables, [question], ask=True)
    answer = {"role": "assistant", "content": _SENTINEL}
    whole = _render(template, variables, [question, answer], ask=False)
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
