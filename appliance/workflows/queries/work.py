"""The progress and results of imports, runs and replays, and the facts for a recipe."""

from __future__ import annotations

from typing import Any

from appliance.api.data import ImportStatus
from appliance.api.runs import RecipeFacts, ReplayStatus, RunProgress, ValidationSet, WorkError
from appliance.domain.core.records.runs import TrainingCheckpoint
from appliance.domain.core.state import State
from appliance.domain.core.words import unknown_word
from appliance.domain.data.kinds import PREFERENCE
from appliance.domain.evaluation.basis import count_evaluations, find_sets, rows_of_dataset, rows_of_set
from appliance.domain.planning.shape import read_roles
from appliance.domain.recipe.recipe import ResolutionFacts
from appliance.domain.runs.conditions import UNDER_WAY
from appliance.errors import NotFound
from appliance.sandbox.host import visible_cards
from appliance.workflows.core.context import LedgerContext, RunContext
from appliance.workflows.core.progress import Stream
from appliance.workflows.evaluation.local_sets import list_local
from appliance.workflows.runs import planning, steps

_QUOTING = ("labels", "sample")
"""Fields of an import's result that quote rows."""


def import_status(context: RunContext, order: str, principal: str) -> ImportStatus:
    """Return the state of an import. Only the person who ordered it sees labels and the first row.

    Raises:
        NotFound: There is no such import.
    """
    record = context.ledger.state.imports.require(order)
    stream = context.progress.read(order)
    current = context.ledger.state.imports.get(order) or record
    under_way = _hide_status(context, order, stream)
    found = {
        "result": stream.result if principal == record.signer else _without_rows(stream.result),
        "error": _find_error(context, stream),
        "progress": tuple(stream.frames)[-1:],
    }
    return ImportStatus(**dict(current) | under_way | found)


def _hide_status(context: RunContext, key: str, stream: Stream) -> dict[str, str]:
    """Return the status of work that a thread has in hand, because its entry comes before the result or the reason."""
    return {"status": "requested"} if key in context.items_in_progress and not stream.ended else {}


def _without_rows(result: dict[str, Any] | None) -> dict[str, Any] | None:
    return None if result is None else {name: value for name, value in result.items() if name not in _QUOTING}


def replay_status(context: RunContext, order: str) -> ReplayStatus:
    """Return the state of a replay.

    Raises:
        NotFound: There is no such replay.
    """
    record = context.ledger.state.replays.require(order)
    stream = context.progress.read(order)
    current = context.ledger.state.replays.get(order) or record
    under_way = _hide_status(context, order, stream)
    found = {"error": _find_error(context, stream), "progress": tuple(stream.frames)[-1:]}
    return ReplayStatus(**dict(current) | under_way | found)


def _find_error(context: LedgerContext, stream: Stream) -> WorkError | None:
    """Return the error of a failed stream. A text that was erased meanwhile is still in memory but not shown."""
    error = stream.error
    text = None if error is None else context.ledger.state.texts.get(error.commitment or "")
    if error is None or text is None or text.erased is None:
        return error
    return error.model_copy(update={"message": f"erased by entry {text.erased}"})


def training_checkpoints(context: LedgerContext, run: str) -> list[TrainingCheckpoint]:
    """Return the training checkpoints of a run by step, at which a window for a replay can begin and end.

    Raises:
        NotFound: The run is unknown.
    """
    state = context.ledger.state
    state.runs.require(run)
    return [made for made in state.training_checkpoints.values() if made.run == run]


def run_progress(context: RunContext, run: str, after: int) -> RunProgress:
    """Return the run's frames from `after` on.

    A run whose failure is recorded ends for its followers once its thread has also published the reason.

    Raises:
        NotFound: The run is unknown.
    """
    row = context.ledger.state.runs.require(run)
    stream = context.progress.read(run)
    if after > stream.next:
        after = 0  # the number is from before a restart of the service
    row = context.ledger.state.runs.get(run) or row
    unexplained = row.status == "failed" and run in context.items_in_progress
    error = _find_error(context, stream)
    return RunProgress(
        status=row.status,
        frames=tuple(frame for frame in list(stream.frames) if frame["seq"] >= after),
        next=stream.next,
        ended=stream.ended or (row.status not in UNDER_WAY and not unexplained),
        detail=None if error is None else error.message,
        adapter=next((key for key, a in context.ledger.state.adapters.items() if a.run == run), None),
    )


def run_steps(context: RunContext, run: str) -> bytes:
    """Return the run's steps so far, as the bytes of steps.jsonl."""
    return steps.read(context.ledger.state, context.artifacts, context.steps, run)


def _list_valid_sets(state: State, base_digest: str, dataset_kind: object) -> tuple[ValidationSet, ...]:
    """Return the newest version of each valid validation set on which a run on this base and kind can be evaluated."""
    names = [one.name for one in state.validation_sets.values() if dataset_kind in (None, one.dataset_kind)]
    found = find_sets(state, names, base_digest).values()
    return tuple(
        ValidationSet(**dict(one), evaluated_before=count_evaluations(state, rows_of_set(one))) for one in found
    )


def recipe_facts(context: RunContext, base_name: str, dataset_name: str) -> RecipeFacts:
    """Return the facts with which a client resolves a recipe itself.

    Raises:
        NotFound: The base or the dataset is unknown.
    """
    state = context.ledger.state
    base, dataset = state.bases.get(base_name), state.datasets.get(dataset_name)
    if base is None or dataset is None:
        inputs = (("base", base_name, state.bases), ("dataset", dataset_name, state.datasets))
        known = ((kind, name, [key for key, _ in table.items()]) for kind, name, table in inputs)
        raise NotFound(
            "; ".join(
                unknown_word(kind, name, keys, "an imported one") for kind, name, keys in known if name not in keys
            )
        )
    roles, experts = read_roles(base.facts)
    machine = planning.describe_machine(context)
    facts = ResolutionFacts(
        train_rows=dataset.facts["train_rows"],
        max_tokens=dataset.facts["max_tokens"],
        context_length=base.facts["context_length"],
        device="cuda" if context.device == "cuda" else "cpu",
        bfloat16=context.bfloat16,
        threads=machine.threads,
        cards=max(1, len(visible_cards())),
        stored="gptq" if base.facts.get("quantisation") == "gptq" else "none",
        roles=roles,
        experts=experts,
        preferences=dataset.facts.get("dataset_kind") == PREFERENCE,
    )
    return RecipeFacts(
        base_digest=base.digest,
        dataset_digest=dataset.digest,
        facts=facts,
        base_facts=base.facts,
        dataset_facts=dataset.facts,
        evaluated_before=count_evaluations(state, rows_of_dataset(state, dataset_name)),
        local_sets=list_local(context, dataset_name),
        validation_sets=_list_valid_sets(state, base.digest, dataset.facts.get("dataset_kind")),
        machine=machine,
        runs_on=context.runs_on,
    )
