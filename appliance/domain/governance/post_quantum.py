"""The order that adds post-quantum keys to a log that was founded without them.

From its entry on, each checkpoint and each adapter has a second signature by an ML-DSA-65 key, and both signatures must
be valid. The Ed25519 and ECDSA keys stay, since witnesses and public programs verify their signatures.
"""

from __future__ import annotations

import base64

from pydantic import Field

from appliance.domain.core.action import Action
from appliance.domain.core.case import Case, Changes
from appliance.domain.core.entry import Countersigned
from appliance.domain.core.facts import ActionFacts, Entity
from appliance.domain.core.names import Base64, Canonical, Time
from appliance.domain.core.order import Order, Subjects
from appliance.domain.core.records.people import Principal
from appliance.domain.core.records.site import MOST_VKEY_CHARACTERS, AdapterKey, LogKey
from appliance.domain.core.roles import Reasons
from appliance.domain.core.state import State
from appliance.domain.governance.log_control import refuse_new_log_key
from appliance.errors import RefusalCode
from appliance.formats.log.note import is_post_quantum, vkey_of
from appliance.formats.signatures.ml_dsa import PUBLIC_BYTES, is_ml_dsa, ml_dsa_spki

POST_QUANTUM_ADDED = RefusalCode(
    "post-quantum-added",
    "state",
    "The log has had post-quantum keys since entry {entry}.",
    "Replace the log's key: appliance log-key rotate --post-quantum. The adapters' key cannot be replaced.",
)
POST_QUANTUM_KEY_INVALID = RefusalCode(
    "post-quantum-key-invalid",
    "order",
    "The order contains no valid ML-DSA-65 key for {use}.",
    "Make both keys again: appliance post-quantum add.",
)


class PostQuantumKeys(Canonical):
    """The ML-DSA-65 keys of a log.

    `log_key` signs checkpoints and is a C2SP vkey. `adapter_key` signs adapters and is a SubjectPublicKeyInfo (DER).
    """

    log_key: str = Field(max_length=MOST_VKEY_CHARACTERS)
    adapter_key: Base64


class AddPostQuantumKeys(Order):
    """An order to sign checkpoints and adapters with these ML-DSA-65 keys in addition to the present keys."""

    action = "add-post-quantum-keys"
    log_key: str = Field(max_length=MOST_VKEY_CHARACTERS)
    adapter_key: Base64

    def subjects(self) -> Subjects:
        return self._self("log-key")


class PostQuantumKeysAdded(Countersigned):
    """The event of the post-quantum keys, which sign from this entry on."""

    type = "post-quantum-keys.added"


def is_post_quantum_adapter_key(key: str) -> bool:
    """Return True if `key`, a SubjectPublicKeyInfo in base64, is an ML-DSA-65 key."""
    return is_ml_dsa(base64.b64decode(key))


def authorise_add_post_quantum_keys(state: State, order: AddPostQuantumKeys, signer: Principal, now: Time) -> Reasons:
    """Return the refusal reasons of post-quantum keys: the log has such keys, or one of the new keys is invalid."""
    before = state.site.post_quantum_adapter_key
    if before is not None:
        return [POST_QUANTUM_ADDED(entry=before.since)]
    reasons = refuse_new_log_key(state, order.log_key)
    if not reasons and not is_post_quantum(order.log_key):
        reasons.append(POST_QUANTUM_KEY_INVALID(use="checkpoints"))
    if not is_post_quantum_adapter_key(order.adapter_key):
        reasons.append(POST_QUANTUM_KEY_INVALID(use="adapters"))
    return reasons


def apply_post_quantum_keys(case: Case) -> Changes:
    """Add the post-quantum keys to the site."""
    order, site, index = case.order(AddPostQuantumKeys), case.state.site, case.entry.index
    added = {
        "log_keys": (*site.log_keys, LogKey(vkey=order.log_key, since=index)),
        "post_quantum_adapter_key": AdapterKey(key=order.adapter_key, since=index),
    }
    return [(case.state.sites, "site", site.model_copy(update=added))]


class PostQuantumKeysEntity(Entity):
    """The post-quantum keys of the log and of the adapters."""

    log_key: str
    adapter_key: str


ACTIONS = (
    Action(
        AddPostQuantumKeys,
        title="Add post-quantum keys",
        has_form=False,
        authorise=authorise_add_post_quantum_keys,
        signers=("administrator",),
        meaning="Checkpoints and adapters need a second signature by these ML-DSA-65 keys, from now on and for good.",
        event=PostQuantumKeysAdded,
        apply=apply_post_quantum_keys,
        two_administrators=True,
        facts=ActionFacts(PostQuantumKeysEntity, "log_key", ("adapter_key",)),
        example_values={
            "signer": "anna",
            "log_key": vkey_of("bank.example/log", ml_dsa_spki(bytes(PUBLIC_BYTES))),
            "adapter_key": base64.b64encode(ml_dsa_spki(bytes(PUBLIC_BYTES))).decode(),
        },
    ),
)
"""Definition of the action that adds post-quantum keys."""
