"""Who may use the site's cluster, and in whose name its jobs are accounted for there."""

from __future__ import annotations

from appliance.domain.core.roles import Reasons
from appliance.domain.core.state import State


def account_of(state: State, person: str) -> str | None:
    """The account of Slurm that policy gives this person; None where it gives none."""
    return next((row.account for row in state.parameters.slurm_accounts if row.person == person), None)


def unfit_place(state: State, on: str, person: str, *, private: bool) -> Reasons:
    """Where policy names persons and accounts, nobody else orders a run on the cluster. A private run stays here: who
    reads its secret can subtract its noise."""
    if on == "here":
        return []
    reasons: Reasons = []
    if state.parameters.slurm_accounts and account_of(state, person) is None:
        reasons.append(f"slurm: expected an account for {person} in the policy's slurm_accounts, got none")
    if private:
        reasons.append(
            "on: expected here for a recipe with privacy, whose secret does not leave this machine, got slurm"
        )
    return reasons


def unfit_nodes(on: str, nodes: int, processes: int) -> Reasons:
    """Several nodes are a cluster's, and each of them has as many processes."""
    if on == "here" and nodes > 1:
        return [f"nodes: expected 1 with `on: here`, got {nodes}"]
    if processes % nodes:
        return [f"nodes: expected a divisor of the recipe's {processes} processes, got {nodes}"]
    return []
