"""The service writes into a folder in which the training worker could have written."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from appliance.domain.core.entry import parse_entry
from appliance.domain.core.names import encode_value
from appliance.domain.core.state import State
from appliance.domain.governance.post_quantum import AddPostQuantumKeys, PostQuantumKeysAdded
from appliance.domain.releases.adapters import SIGNATURE_ROLES
from appliance.errors import Tampered
from appliance.workflows.runs import evaluate
from scripts.kit.log_builder import LogBuilder, stage


@pytest.mark.parametrize("name", ["recipe.json", "metrics.json", "logit_fingerprint.json", "base.json"])
def test_a_link_of_the_worker_is_replaced_and_not_followed(tmp_path: Path, name: str) -> None:
    """As a worker can leave one where a policy accepts that Landlock is missing."""
    site = stage("trained")
    run = site.state.runs.get("r-000001")
    assert run is not None
    base = SimpleNamespace(facts={"tokenizer_digest": None, "chat_template_digest": None})
    state: Any = State()
    state.bases.put(run.base, base)
    context: Any = SimpleNamespace(ledger=SimpleNamespace(state=state))
    output, victim, order = tmp_path / "output", tmp_path / "ledger.db", site.train_order()
    output.mkdir()
    victim.write_bytes(b"the log")
    (output / name).symlink_to(victim)
    evaluate._write_documents(context, run, order, output, {}, {})
    assert victim.read_bytes() == b"the log"
    assert not (output / name).is_symlink() and (output / "recipe.json").read_bytes() == encode_value(order.recipe)


@pytest.mark.parametrize("moment", ["before", "while the adapter is sealed", "never"])
def test_an_adapter_has_the_signatures_that_the_log_requires_at_its_entry(
    moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run of hours is not lost because administrators add post-quantum keys at its end."""
    site = stage("trained")
    key = site.make_post_quantum_keys()
    body, documents = site.sealing("r-000001")
    signatures = [documents.pop(role) for role in SIGNATURE_ROLES]

    def add_keys() -> None:
        order = site.order(AddPostQuantumKeys, "anna", **key)
        site.two(PostQuantumKeysAdded(policy=site.in_force), order)

    def append(context: Any, body: Any, *, documents: dict[str, bytes]) -> None:
        if moment.startswith("while") and site.state.site.post_quantum_adapter_key is None:
            add_keys()
        site.add(body, documents=documents)

    if moment == "before":
        add_keys()
    monkeypatch.setattr(evaluate, "append_with_retry", append)
    context: Any = SimpleNamespace(ledger=SimpleNamespace(lock=nullcontext(), state=site.state))
    evaluate._append_sealed(context, body, documents, signatures)
    sealed = parse_entry(site.entries[-1]).documents
    assert ("post_quantum_signature" in sealed) == (moment != "never")
    if moment == "before":
        with pytest.raises(Tampered, match="expected 2, one of each adapter key, got 1"):
            evaluate._append_sealed(context, *sealing_again(site), signatures[:1])


def sealing_again(site: LogBuilder) -> tuple[Any, dict[str, bytes]]:
    """Of another run of the same dataset."""
    site.train()
    body, documents = site.sealing("r-000002", 2)
    return body, {role: data for role, data in documents.items() if role not in SIGNATURE_ROLES}
