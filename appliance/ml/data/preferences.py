"""Preferences as TRL has them: two answers to one prompt, which stands before them or is their common beginning.

https://huggingface.co/docs/trl/dataset_formats#preference. A text is a message; what is a list of messages in one part
is one in all. No torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from appliance.errors import BadInput

Message = dict[str, str]


class Sides(NamedTuple):
    """The messages before the answers, the answer that was chosen, and the one that was rejected."""

    messages: Sequence[Message]
    chosen: str
    rejected: str


def read_sides(given: Mapping[str, str | list[Message]], place: str) -> Sides:
    """`given`: the parts of the row that are there. BadInput where they are not one prompt and two answers to it."""
    for part in ("chosen", "rejected"):
        if part not in given:
            raise BadInput(f"{place}, {part}: expected an answer, got none")
    kinds = {part: "a list of messages" if isinstance(value, list) else "text" for part, value in given.items()}
    if len(set(kinds.values())) > 1:
        got = ", ".join(f"{part} as {kind}" for part, kind in kinds.items())
        raise BadInput(f"{place}: expected all parts as text or all as lists of messages, got {got}")
    if given["chosen"] == given["rejected"]:
        raise BadInput(f"{place}: expected two different answers, got one text as chosen and as rejected")
    texts = {part: value for part, value in given.items() if isinstance(value, str)}
    sides = _of_texts(texts, place) if texts else _of_messages(given, place)  # type: ignore[arg-type] # all are lists
    if sides.chosen.strip() == sides.rejected.strip():
        raise BadInput(f"{place}: expected two different answers, got the same but for outer white space")
    return sides


def _of_texts(given: Mapping[str, str], place: str) -> Sides:
    chosen, rejected = given["chosen"], given["rejected"]
    if "prompt" in given:
        return Sides([{"role": "user", "content": given["prompt"]}], chosen, rejected)
    shared = next((n for n, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b), None)
    if shared is None:
        shared = min(len(chosen), len(rejected))
    # Not within a word: TRL cuts there, and trains on halves of words.
    while shared and not chosen[shared - 1].isspace():
        shared -= 1
    prompt = chosen[:shared].strip()
    if not prompt:
        raise BadInput(
            f"{place}: expected a prompt, or a common beginning of chosen and rejected that can be one, got neither"
        )
    for part in ("chosen", "rejected"):
        if not given[part][shared:].strip():
            raise BadInput(f"{place}, {part}: expected an answer behind the common beginning, got nothing")
    return Sides([{"role": "user", "content": prompt}], chosen[shared:].strip(), rejected[shared:].strip())


def _of_messages(given: Mapping[str, list[Message]], place: str) -> Sides:
    chosen, rejected, prompt = given["chosen"], given["rejected"], given.get("prompt")
    if prompt is None:
        shared = 0
        while shared < min(len(chosen), len(rejected)) - 1 and chosen[shared] == rejected[shared]:
            shared += 1
        if not shared:
            raise BadInput(f"{place}: expected chosen and rejected to begin with the same prompt, got different ones")
        prompt, chosen, rejected = chosen[:shared], chosen[shared:], rejected[shared:]
    for part, answer in (("chosen", chosen), ("rejected", rejected)):
        if len(answer) != 1 or answer[0]["role"] != "assistant":
            got = ", ".join(message["role"] for message in answer)
            raise BadInput(f"{place}, {part}: expected one turn of the assistant behind the prompt, got {got}")
    return Sides(prompt, chosen[0]["content"], rejected[0]["content"])
