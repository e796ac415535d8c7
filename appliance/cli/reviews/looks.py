"""Looks at a sealed adapter before a decision: samples side by side, and a reviewer's own prompts."""

from __future__ import annotations

from typing import Any

import click

from appliance.cli.support.caller import Caller, is_interactive
from appliance.cli.support.command import command, signs
from appliance.cli.support.output import print_facts, print_json, print_line, say
from appliance.cli.support.signing import sign_and_submit
from appliance.errors import BadInput


@command("samples", example="appliance review samples clauses@1 --count 8")
@click.argument("adapter", metavar="NAME@VERSION")
@click.option(
    "--count", type=click.IntRange(1, 20), default=5, show_default=True, metavar="N", help="How many rows, at most 20."
)
@signs
@click.pass_obj
def samples(caller: Caller, adapter: str, count: int) -> None:
    """Show held-out rows, and what the adapter, the version that answers now and the base answer to them.

    The rows follow from the log, so nobody chooses them. The site's policies say who may see them. An entry records
    that you looked.
    """
    from appliance.client.releases.looks import propose_samples, wait_for_look

    receipt = sign_and_submit(caller, propose_samples(caller.reading(), caller.anchor, caller.signer, adapter, count))
    found = wait_for_look(caller.reading(), receipt.order, lambda: say("waits for the answers"))
    if caller.json:
        print_json({**found, "entry": receipt.index})
        return
    names = {"adapter": adapter, "released": found["released"], "base": "base"}
    for number, row in enumerate(found["rows"], 1):
        print_line(f"Row {number} of {len(found['rows'])}, {row['row'][:16]}")
        facts: list[tuple[str, object]] = [("  text", row["text"]), ("  expected", row["expected"])]
        facts += [(f"  {names[one['model']]}", _answer(one)) for one in row["answers"]]
        print_facts(facts)
        print_line("")
    if found["released_missing"]:
        say(f"{found['released_missing']}: it is not asked")
    say(f"Shown to {caller.signer} alone; entry {receipt.index} is your order. Copy no row into a report.")


@command(
    "try",
    example=(
        "appliance review try clauses@1 --prompt 'The tenant may sublet.'\n"
        "appliance review try clauses@1 --prompt 'One.' --prompt 'Two.' --max-tokens 64"
    ),
)
@click.argument("adapter", metavar="NAME@VERSION")
@click.option("--prompt", "prompts", multiple=True, metavar="TEXT", help="A prompt. Can be repeated.")
@click.option(
    "--max-tokens",
    type=click.IntRange(1, 1_024),
    default=256,
    show_default=True,
    metavar="N",
    help="Tokens of each answer at most.",
)
@click.option("--no-instruction", is_flag=True, help="Leave out the dataset's instruction.")
@signs
@click.pass_obj
def try_adapter(caller: Caller, adapter: str, prompts: tuple[str, ...], max_tokens: int, no_instruction: bool) -> None:
    """Put prompts of your own to a sealed adapter that is not released.

    It answers in a sandboxed worker that ends afterwards, and no unit is affected. An entry records that you tried it,
    with keyed digests of prompts and answers and never their text. Policy limits your prompts in a day (tries_a_day).
    """
    from appliance.client.releases.looks import prepare_try, send_prompts, wait_for_look

    texts = prompts or _ask_for_prompts(caller)
    prepared = prepare_try(
        caller.reading(),
        caller.anchor,
        caller.signer,
        adapter,
        texts,
        max_tokens=max_tokens,
        adds_instruction=not no_instruction,
    )
    send_prompts(caller.reading(), prepared.prompts)
    receipt = sign_and_submit(caller, prepared.proposal)
    found = wait_for_look(caller.reading(), receipt.order, lambda: say("waits for the answers"))
    if caller.json:
        answers = [
            {**answer, "prompt_salt": prompt.salt.hex()}
            for answer, prompt in zip(found["answers"], prepared.prompts, strict=True)
        ]
        print_json({"adapter": found["adapter"], "answers": answers, "entry": receipt.index})
        return
    for text, answer in zip(texts, found["answers"], strict=True):
        print_facts([("prompt", text), ("answer", _answer(answer))])
        print_line("")
    say(f"Answered to {caller.signer} alone; entry {receipt.index} is your order. No entry has a text of it.")


def _ask_for_prompts(caller: Caller) -> tuple[str, ...]:
    """At a terminal: one prompt a line, until an empty one."""
    from appliance.domain.releases.looks import MOST_PROMPTS

    if caller.yes or not is_interactive():
        raise BadInput("review try, prompt: expected --prompt TEXT, got none")
    found: list[str] = []
    while len(found) < MOST_PROMPTS:
        text = str(click.prompt("Prompt (empty to end)", default="", show_default=False, err=True)).strip()
        if not text:
            break
        found.append(text)
    if not found:
        raise BadInput("review try, prompt: expected one at least, got none")
    return tuple(found)


def _answer(answer: dict[str, Any]) -> str:
    """The text, and of a classification its probability; where there is none, why."""
    if answer["code"] is not None:
        return f"none: {answer['code']}"
    sure = "" if answer["probability"] is None else f"  ({float(answer['probability']):.3f})"
    return f"{answer['text'] or '(nothing)'}{sure}"
