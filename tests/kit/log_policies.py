"""Trust policies for tests: of logs and a number of witnesses, and the text of a policy."""

from __future__ import annotations

from collections.abc import Sequence

from appliance.errors import BadInput
from appliance.formats.log.checkpoint import parse_witness_vkey
from appliance.formats.log.log_policy import LogPolicy, PolicyLog, PolicyWitness, WitnessGroup


def quorum_policy(log_vkeys: Sequence[str], witness_vkeys: Sequence[str], quorum: int) -> LogPolicy:
    """Build the policy that `quorum` of these witnesses must cosign; 0 means that none is needed.

    Each witness has the name of its key.

    Raises:
        BadInput: the quorum is larger than the number of witnesses.
    """
    logs = tuple(PolicyLog(vkey) for vkey in log_vkeys)
    witnesses = tuple(PolicyWitness(parse_witness_vkey(vkey).name, vkey) for vkey in witness_vkeys)
    if not 0 <= quorum <= len(witnesses):
        raise BadInput(f"policy, quorum: expected 0 to the number of witnesses {len(witnesses)}, got {quorum}")
    if quorum == 0:
        return LogPolicy(logs, witnesses)
    group = WitnessGroup("witnesses", quorum, tuple(witness.name for witness in witnesses))
    return LogPolicy(logs, witnesses, (group,), group.name)


def encode_log_policy(policy: LogPolicy) -> bytes:
    """Encode logs, witnesses, groups and the quorum, one per line; thresholds are numbers."""
    lines = [["log", log.vkey, log.url or ""] for log in policy.logs]
    lines += [["witness", witness.name, witness.vkey, witness.url or ""] for witness in policy.witnesses]
    lines += [["group", group.name, str(group.threshold), *group.members] for group in policy.groups]
    lines += [["quorum", policy.quorum]]
    text = "".join(" ".join(filter(None, words)) + "\n" for words in lines)
    return text.encode("utf-8", "surrogateescape")
