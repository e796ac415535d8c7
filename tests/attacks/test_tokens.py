"""A revoked token is refused from the next request on, and responses in progress are cut off."""

from __future__ import annotations

from typing import Any

import pytest

from appliance.domain.core.credentials import parse_token
from appliance.domain.core.names import add_seconds
from appliance.domain.governance.keys import RevokeKey
from appliance.domain.serving.tokens import RevokeTokens
from scripts.kit.appliance import Appliance, Refused
from tests.attacks.streaming import let_go, under_way

pytestmark = pytest.mark.thorough


def revoke(site: Appliance, by: str, **fields: Any) -> None:
    site.order(
        RevokeTokens(
            **{"unit": "legal", "token": None, "issued_before": None, "application": None, **fields}, **site.terms(by)
        )
    )


def is_revoked(site: Appliance, token: str) -> bool:
    with pytest.raises(Refused) as refused:
        site.chat("legal", "labels", token=token)
    return (refused.value.status, refused.value.code) == (401, "revoked")


def test_one_token_is_ended_in_the_middle_of_its_answer_and_no_other(released: Appliance) -> None:
    leaked, kept = released.token("legal"), released.token("legal")
    released.chat("legal", "labels", token=leaked)
    with under_way(released, [(leaked, 0), (kept, 0)]) as ends:
        revoke(released, "legal", token=parse_token(leaked).pae_digest)
        cut = ends[0].result()
        let_go(released)
        whole = ends[1].result()
    assert cut["error"]["code"] == "cut-off"
    assert whole == "[DONE]"
    assert is_revoked(released, leaked)
    released.chat("legal", "labels", token=kept)
    finished = released.entries(type="request.finished")
    assert sorted(entry["outcome"] for entry in finished) == ["failure", "success", "success", "success"]
    revoked = released.entries(type="tokens.revoked")[0]["index"]
    used = {entry["body"]["token"] for entry in released.entries(type="request.admitted", after=revoked)}
    assert used == {parse_token(kept).pae_digest}
    assert released.verify()["verdict"] == "verified"


def test_all_tokens_of_a_time_are_ended_and_new_ones_count(released: Appliance) -> None:
    old = [released.token("legal") for _ in range(2)]
    released.chat("legal", "labels", token=old[0])
    revoke(released, "lou", issued_before=add_seconds(released.now(), 0))
    assert all(is_revoked(released, token) for token in old)
    released.chat("legal", "labels")
    released.stop()
    released.start()
    assert is_revoked(released, old[0])
    released.chat("legal", "labels")
    with pytest.raises(Refused, match="release-owner:legal"):
        revoke(released, "cleo", issued_before=released.now())
    assert released.verify()["verdict"] == "verified"


def test_a_key_that_is_revoked_cuts_what_its_tokens_are_being_answered(released: Appliance) -> None:
    token = released.token("legal")
    released.chat("legal", "labels", token=token)
    with under_way(released, [(token, 0)]) as (end,):
        key = released.keys["legal"].keyid
        released.order(RevokeKey(principal="legal", keyid=key, since=None, **released.terms("legal")))
        assert end.result()["error"]["code"] == "cut-off"
    with pytest.raises(Refused) as refused:
        released.chat("legal", "labels", token=token)
    assert refused.value.status == 401
