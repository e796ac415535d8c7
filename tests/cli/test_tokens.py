"""`token revoke`: one token by itself or its id, or all before a time; what will be signed is shown first."""

from __future__ import annotations

from collections.abc import Callable

from tests.cli.conftest import Desk


def test_a_unit_ends_its_own_token_by_the_token_or_by_its_id(open_desk: Callable[[str], Desk]) -> None:
    desk = open_desk("serving")
    issued = desk.as_("legal", "token", "issue")
    token, digest = issued.out.strip(), issued.err.split("Its id: ")[1].strip()
    file = desk.folder / "leaked"
    file.write_text(token + "\n")
    told = desk.as_("legal", "token", "revoke", "legal", "--token", str(file), "--reason", "it leaked", "--yes")
    assert told.code == 0, told.err
    for text in ("revoke-tokens", f"token:  {digest}", "open nothing more"):
        assert text in " ".join(told.err.split()) or text in told.err or text in told.out, text
    assert desk.site.state.tokens.get(f"legal/{digest}") is not None
    file.write_text(digest)
    again = desk.as_("legal", "token", "revoke", "legal", "--token", str(file), "--yes")
    assert again.code == 3 and "expected one that counts" in again.err


def test_an_administrator_ends_all_before_a_time(open_desk: Callable[[str], Desk]) -> None:
    desk = open_desk("serving")
    told = desk.as_("anna", "token", "revoke", "legal", "--issued-before", "2026-01-10", "--yes")
    assert told.code == 0, told.err
    unit = desk.site.state.principals.get("legal")
    assert unit is not None and unit.tokens_since == "2026-01-10T00:00:00.000Z"
    assert desk.as_("sales", "token", "revoke", "legal", "--issued-before", "2026-01-11", "--yes").code == 3
    assert desk.as_("anna", "token", "revoke", "legal", "--yes").code == 2
