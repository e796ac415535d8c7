"""A request as tokens: what can be made of it beside the engine's steps, in another thread."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from appliance.domain.data.tool_calls import MAX_CALLS, list_names
from appliance.errors import BadInput, TooLarge
from appliance.ml.inference.choices import Choices, Grammar
from appliance.ml.inference.drawing import PROMPT_CHUNK
from appliance.ml.inference.request import Request, check_labels
from appliance.ml.inference.score import Branch, find_branches
from appliance.ml.model.call_stream import CallStream
from appliance.ml.model.chat import Chat
from appliance.ml.model.grammars import Vocabulary, write_call_grammar, write_schema_grammar


@dataclass(frozen=True)
class Question:
    """A request, its prompt's tokens, what an answer is held to, and what labels ask of a classification. `calls`: of
    an answer that may call tools."""

    request: Request
    prompt: list[int]
    choices: Choices | Grammar | None = None
    branches: list[Branch] | None = None
    calls: CallStream | None = None

    @property
    def is_long(self) -> bool:
        """Whether it is read in more than one chunk."""
        paths = sum(len(branch.path) for branch in self.branches or ())
        return len(self.prompt) + paths > PROMPT_CHUNK


def read_answerable(chat: Chat, context_length: int, request: Request, vocabulary: Vocabulary) -> Question:
    """What an answer is drawn for; its prompt leaves room for one token."""
    prompt, labels = _encode_prompt(chat, context_length, request), _encode_labels(chat, request)
    if labels:
        return Question(request, prompt, choices=Choices(labels))
    most = MAX_CALLS if request.parallel else 1
    calls = None if chat.calls is None else CallStream(chat.calls, list_names(request.tools), most)
    held = _hold(chat, request, vocabulary, most) if request.is_held else None
    return Question(request, prompt, choices=held, calls=calls if request.tools else None)


def _hold(chat: Chat, request: Request, vocabulary: Vocabulary, most: int) -> Grammar:
    """What the answer is held to."""
    if not request.tools:
        assert request.schema is not None
        return Grammar(vocabulary.match(write_schema_grammar(request.schema), "response_format"))
    free = not request.must_call
    grammar = write_call_grammar(
        chat,
        list(_list_callable(request)),
        most=most,
        may_speak=free and request.schema is None,
        schema=request.schema if free else None,
    )
    return Grammar(vocabulary.match(grammar, "tools" if request.schema is None else "tools, response_format"))


def _list_callable(request: Request) -> Iterator[Mapping[str, Any]]:
    """The tools that an answer may call: without its schema where a call takes any object."""
    for tool in request.tools:
        name = tool["function"]["name"]
        if request.must_call_one in (None, name):
            yield tool if request.must_call or name in request.strict else {"function": {"name": name}}


def read_classifiable(chat: Chat, context_length: int, request: Request) -> Question:
    """What is asked for the probability of each label; prompt and longest label fit the context."""
    if not request.labels:
        raise BadInput("labels: expected at least one, got none")
    prompt, labels = _encode_prompt(chat, context_length, request), _encode_labels(chat, request)
    if (got := len(prompt) + max(map(len, labels))) > context_length:
        raise TooLarge(
            f"labels: expected at most {context_length} tokens with the messages, got {got}", code="context-length"
        )
    return Question(request, prompt, branches=find_branches(labels))


def _encode_labels(chat: Chat, request: Request) -> list[list[int]]:
    for label in request.labels:
        chat.check_plain(label, "labels")
    labels = chat.encode_all([chat.answer(label) for label in request.labels])
    check_labels(labels)
    return labels


def _encode_prompt(chat: Chat, context_length: int, request: Request) -> list[int]:
    if request.prompt is None:
        text = chat.render(request.messages, request.tools)
    else:
        chat.check_plain(request.prompt, "prompt")
        text = request.prompt
    (prompt,) = chat.encode_all([text])
    if len(prompt) >= context_length:
        raise TooLarge(
            f"messages: expected fewer than {context_length} tokens, got {len(prompt)}", code="context-length"
        )
    return prompt
