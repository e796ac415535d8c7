"""Preparation of requests outside the engine's steps, in another thread, and logit fingerprints."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from appliance.domain.data.tool_calls import MAX_CALLS, list_names
from appliance.errors import BadInput, Tampered, TooLarge
from appliance.formats.core.digest import digest_bytes
from appliance.ml.inference.request import Encode, InferenceRequest, encode_request
from appliance.ml.inference.sampling import PROMPT_CHUNK
from appliance.ml.inference.score import Branch, Choices, Grammar, find_branches
from appliance.ml.layers.packing import Pack
from appliance.ml.model.base import LoadedBase
from appliance.ml.model.calls import CallStream
from appliance.ml.model.chat import Chat
from appliance.ml.model.grammars import Vocabulary, write_call_grammar, write_schema_grammar


@dataclass(frozen=True)
class PreparedPrompt:
    """A request, its prompt's tokens, and its constraints.

    `choices` restricts the output to labels or a grammar. `branches` is the labels' tree for a classification. `calls`
    separates tool calls from text.
    """

    request: InferenceRequest
    prompt: list[int]
    choices: Choices | Grammar | None = None
    branches: list[Branch] | None = None
    calls: CallStream | None = None

    @property
    def is_long(self) -> bool:
        """True if the request is read in more than one chunk."""
        paths = sum(len(branch.path) for branch in self.branches or ())
        return len(self.prompt) + paths > PROMPT_CHUNK


def read_answerable(
    chat: Chat, context_length: int, request: InferenceRequest, vocabulary: Vocabulary, encode: Encode | None = None
) -> PreparedPrompt:
    """Return the question for a generated response; its prompt leaves room for one token.

    `encode` replaces `encode_request`, for example by another process.

    Raises:
        BadInput: a text contains a control token, or the template refuses the messages.
        TooLarge: the prompt does not fit the context.
    """
    encoded = encode_request(chat, request) if encode is None else encode(request)
    prompt = _check_prompt(encoded.prompt, context_length)
    if encoded.labels:
        return PreparedPrompt(request, prompt, choices=Choices(encoded.labels))
    most = MAX_CALLS if request.parallel else 1
    calls = None if chat.calls is None else CallStream(chat.calls, list_names(request.tools), most)
    held = _make_grammar(chat, request, vocabulary, most) if request.is_held else None
    return PreparedPrompt(request, prompt, choices=held, calls=calls if request.tools else None)


def _make_grammar(chat: Chat, request: InferenceRequest, vocabulary: Vocabulary, most: int) -> Grammar:
    """Return the grammar for the response."""
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


def _list_callable(request: InferenceRequest) -> Iterator[Mapping[str, Any]]:
    """Yield the callable tools, without the schema of those whose calls may have any object as arguments."""
    for tool in request.tools:
        name = tool["function"]["name"]
        if request.must_call_one in (None, name):
            yield tool if request.must_call or name in request.strict else {"function": {"name": name}}


def read_classifiable(
    chat: Chat, context_length: int, request: InferenceRequest, encode: Encode | None = None
) -> PreparedPrompt:
    """Return the question for the probability of each label; prompt and longest label fit the context.

    Raises:
        BadInput: there are no labels.
        TooLarge: prompt and longest label do not fit the context.
    """
    if not request.labels:
        raise BadInput("labels: expected at least one, got none")
    encoded = encode_request(chat, request) if encode is None else encode(request)
    prompt, labels = _check_prompt(encoded.prompt, context_length), encoded.labels
    if (got := len(prompt) + max(map(len, labels))) > context_length:
        raise TooLarge(
            f"labels: expected at most {context_length} tokens with the messages, got {got}", code="context-length"
        )
    return PreparedPrompt(request, prompt, branches=find_branches(labels))


def _check_prompt(prompt: list[int], context_length: int) -> list[int]:
    if len(prompt) >= context_length:
        raise TooLarge(
            f"messages: expected fewer than {context_length} tokens, got {len(prompt)}", code="context-length"
        )
    return prompt


MESSAGES = ({"role": "user", "content": "State in one sentence what you were made for, and name the number 42."},)
LOGITS = 8
CLOSE = 0.1
"""Largest allowed difference of a fingerprint from another order of bf16 arithmetic, as a share of its largest logit.
"""


@dataclass(frozen=True)
class Reading:
    """Some logits of the prompt's last token, as exact decimal text, and the digest of all logits of all tokens."""

    logits: tuple[str, ...]
    digest: str


def find_fingerprint_prompt(base: LoadedBase) -> tuple[str, list[int], list[int]]:
    """Return the fingerprint's prompt, its token ids, and evenly spaced vocabulary indices of the recorded logits."""
    prompt = base.chat.render(MESSAGES)
    size = base.head().weight.shape[0]
    return prompt, base.chat.encode(prompt), [size * place // LOGITS for place in range(LOGITS)]


def read_fingerprint(base: LoadedBase) -> Reading:
    """Compute the logit fingerprint in one pass, alone in its batch, with the adapter in use."""
    _, tokens, places = find_fingerprint_prompt(base)
    pack = Pack()
    pack.add(tokens)
    with torch.inference_mode():
        logits = base.head().logits(base.read_pack(pack)).float().cpu()
    data = logits.numpy().astype("<f4").tobytes()
    return Reading(tuple(encode_number(logits[-1, place].item()) for place in places), digest_bytes(data))


def encode_number(value: float) -> str:
    """Return the shortest decimal text that restores this float32, without an exponent."""
    return np.format_float_positional(np.float32(value), unique=True, trim="0")


def encode_fingerprint(base: LoadedBase, plain: Reading, adapted: Reading) -> dict[str, Any]:
    """Return the sealed form of the fingerprint: only strings and integers, since signed data contains no floats."""
    prompt, tokens, places = find_fingerprint_prompt(base)
    return {
        "prompt": prompt,
        "tokens": tokens,
        "indices": places,
        "base_logits": list(plain.logits),
        "base_digest": plain.digest,
        "adapter_logits": list(adapted.logits),
        "adapter_digest": adapted.digest,
    }


def verify_fingerprint(base: LoadedBase, sealed: Mapping[str, Any], plain: Reading, adapted: Reading) -> None:
    """Compare a sealed fingerprint with that of the running base and adapter.

    Raises:
        Tampered: base or adapter differ from those that were evaluated, or the adapter changes nothing.
        BadInput: the sealed fingerprint is not an object.
    """
    if not isinstance(sealed, Mapping):
        raise BadInput(f"logit fingerprint: expected an object, got {type(sealed).__name__}")
    expected = encode_fingerprint(base, plain, adapted)
    for key, value in expected.items():
        if sealed.get(key) != value:
            raise Tampered(
                f"logit fingerprint, {key}: expected {_abbreviate(sealed.get(key))}, got {_abbreviate(value)}",
                code="fingerprint-differs",
            )
    if plain.digest == adapted.digest:
        raise Tampered(
            "logit fingerprint: expected the adapter to change the logits, got the base's", code="adapter-inactive"
        )


def verify_close(sealed: Mapping[str, Any], found: Reading) -> None:
    """Compare a sealed fingerprint with logits computed by other arithmetic (PEFT's own), within `CLOSE`.

    Raises:
        Tampered: the logits differ by more.
    """
    expected = [float(text) for text in sealed["adapter_logits"]]
    most = CLOSE * max(map(abs, expected))
    for place, (one, other) in enumerate(zip(expected, map(float, found.logits), strict=True)):
        if not abs(one - other) <= most:
            raise Tampered(
                f"logit fingerprint, adapter_logits, {place}: expected {one} within {most:.3g}, got {other}",
                code="fingerprint-differs",
            )


def _abbreviate(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
