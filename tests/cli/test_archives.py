"""Archives on the command line: prepared, compared by a second administrator, ordered, and verified beside the log."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from appliance import verifier
from appliance.client.support.connection import LONG_TIMEOUT_S, Connection
from appliance.domain.core.names import add_seconds
from appliance.domain.governance.service import Heartbeat
from appliance.formats.core.digest import digest_bytes
from appliance.formats.log.checkpoint import witness_vkey_of
from appliance.formats.log.export import read_removed
from appliance.formats.signatures.keys import generate_ed25519
from tests.cli.conftest import Desk, one_line
from tests.kit.archived_log import DAY_S, VKEY
from tests.kit.founded import policy_set
from tests.kit.old_records import cosign_with, old_template

pytestmark = pytest.mark.thorough

OpenDesk = Callable[[object], Desk]


def _archive(desk: Desk, file: Path, *words: str) -> dict[str, Any]:
    """Order an archive, as two administrators type it; the fields that the first one signs."""
    trust = ["--trust", str(desk.trust)]
    told = desk.as_("anna", "ledger", "archive", str(file), *trust, *words, "--yes", "--json")
    assert told.code == 0, told.err
    order = json.loads(told.out)["order"]
    cosign_with(desk.service.context, desk.site)  # The second administrator's copy is still that of the order.
    told = desk.as_("ben", "ledger", "archive", f"{file}.copy", *trust, "--check", order[7:19], "--json")
    assert told.code == 0, told.err
    checked: dict[str, Any] = json.loads(told.out)
    compare = f"appliance ledger archive COPY --check {order[7:19]}"
    assert compare in one_line(desk.as_("ben", "order", "show", order).err)
    told = desk.as_("ben", "order", "countersign", order, "--yes")
    assert told.code == 0, told.err
    said = one_line(told.err)
    assert said.index("Before you countersign") < said.index(compare) < said.index("signed: "), said
    assert digest_bytes(file.read_bytes()) == checked["archive"]
    return checked


def _verify(capsys: pytest.CaptureFixture[str], desk: Desk, export: Path, *archives: Path) -> str:
    beside = [word for file in archives for word in ("--archive", str(file))]
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        verifier.main([str(export), "--trust", str(desk.trust), *beside])
    told = one_line(capsys.readouterr().out)
    assert ended.value.code == 0, told
    return told


def test_two_administrators_archive_old_records(
    open_desk: OpenDesk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = open_desk(old_template())
    archive, trust = tmp_path / "archive.tar", ["--trust", str(desk.trust)]
    denied = desk.as_("audrey", "ledger", "archive", str(tmp_path / "denied.tar"), *trust, "--yes")
    assert denied.code == 3 and "This action needs administrator" in one_line(denied.err), denied.err
    assert "removes:" not in denied.err and "You are about to sign" not in denied.err
    told = desk.as_("anna", "ledger", "archive", str(archive), *trust, "--dry-run", "--json")
    assert told.code == 0, told.err
    could = json.loads(told.out)
    assert could["removed"] == {"previews": 4, "refusals": 2, "replays": 2, "requests": 6}, could
    assert could["kept"] == {"open": 1}
    archive.unlink()
    waits: list[float] = []
    post = Connection.post

    def note(self: Connection, path: str, *given: Any, **named: Any) -> Any:
        waits.append(named.get("timeout_s", 0.0) if path == "/v1/orders" else 0.0)
        return post(self, path, *given, **named)

    monkeypatch.setattr(Connection, "post", note)
    _archive(desk, archive)
    assert waits.count(LONG_TIMEOUT_S) == 2, "for the order and for the countersignature"
    lines = list(desk.site.ledger.entries())
    assert sum(read_removed(data) is not None for data in lines) == could["count"] == 14
    removed = next(index for index, data in enumerate(lines) if read_removed(data) is not None)
    told = desk.as_("anna", "ledger", "archives", "--json")
    (listed,) = json.loads(told.out)
    assert (listed["signers"], listed["count"]) == (["anna", "ben"], 14)
    for words in (("request", f"{1:032x}"), ("log", "--subject", f"request:{1:032x}"), ("show", str(removed))):
        told = desk.as_("anna", "ledger", *words)
        assert told.code == 4
        assert f"removed it by order of anna and ben; the archive {listed['archive']} has it" in one_line(told.err)
    export = tmp_path / "export.tar"
    assert desk.as_("anna", "ledger", "export", str(export)).code == 0
    for beside in ([], ["--archive", str(archive)]):
        with pytest.raises(SystemExit) as ended:
            verifier.main([str(export), *trust, *beside])
        assert ended.value.code == 0
    desk.service.context.ledger.load()


def test_a_second_archive_follows_a_first(
    open_desk: OpenDesk, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each export of the log verifies with none of the archives, with one of them, and with both.

    The first archive is an export of the whole log of its time, so it has what the second one removes.
    """
    desk = open_desk(old_template())
    one, two, export = (tmp_path / name for name in ("one.tar", "two.tar", "export.tar"))
    first = _archive(desk, one, "--records", "requests")
    told = desk.as_("anna", "ledger", "archive", str(two), "--trust", str(desk.trust), "--dry-run")
    assert told.code != 0 and "which archived records" in one_line(told.err) and not two.exists()
    cosign_with(desk.service.context, desk.site)
    second = _archive(desk, two)
    assert (first["removed"], second["removed"]) == (
        {"requests": 6},
        {"previews": 4, "refusals": 2, "replays": 2},
    )
    assert desk.as_("anna", "ledger", "export", str(export)).code == 0
    names = {"one": first["archive"], "two": second["archive"]}
    for given, missing in (((), ("one", "two")), ((one,), ()), ((two,), ("one",)), ((one, two), ())):
        told = _verify(capsys, desk, export, *given)
        assert {name for name, digest in names.items() if f"give their archive, {digest}" in told} == set(missing)
    _verify(capsys, desk, one)
    assert f"give their archive, {names['one']}" in _verify(capsys, desk, two)
    desk.service.context.ledger.load()


def test_an_archive_has_what_the_quorum_of_witnesses_cosigned(open_desk: OpenDesk, tmp_path: Path) -> None:
    """Two witnesses cosign sizes that differ, since a heartbeat comes in between."""
    desk, other, name = open_desk(old_template()), generate_ed25519(), "witness.example/w2"
    site, context = desk.site, desk.service.context
    rules = {"witnesses": (VKEY, witness_vkey_of(name, other)), "retention": site.state.parameters.retention}
    site.adopt(policy_set(witness_quorum=2, **rules))
    archive = tmp_path / "archive.tar"
    words = ("ledger", "archive", str(archive), "--trust", str(desk.trust), "--dry-run")
    told = desk.as_("anna", *words)
    assert told.code != 0 and "expected a log that 2 of the policy's witnesses have cosigned" in one_line(told.err)
    cosign_with(context, site, other, name, now=add_seconds(site.now, -30 * DAY_S))
    told = desk.as_("anna", *words)
    assert told.code != 0 and "183 days old when the witnesses cosigned the log, got none" in one_line(told.err)
    assert not archive.exists()
    size = site.state.size
    cosign_with(context, site)
    site.add(Heartbeat())
    cosign_with(context, site, other, name)
    assert _archive(desk, archive)["size"] == size
    context.ledger.load()
