"""Sample views and trials: permitted reviewers, limits, and the rows that are drawn."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest

from appliance.domain.actions.registry import list_refusal_reasons
from appliance.domain.core.names import add_seconds
from appliance.domain.core.policy import Parameters
from appliance.domain.releases.previews import draw_samples
from appliance.errors import ApplianceError, Denied, Refusal
from appliance.formats.core.commitment import commit
from scripts.kit.log_builder import LogBuilder, order_of, policy_set, stage

MANIFEST, ROOT = "sha256:" + "ab" * 32, bytes(32)


def _prompts(count: int) -> tuple[str, ...]:
    return tuple(commit(f"prompt {number}", bytes([number]) * 32) for number in range(count))


def _may(site: LogBuilder, who: str, action: str, **fields: Any) -> list[Refusal]:
    order = site.samples_order(who, **fields) if action == "samples" else site.try_order(who, **fields)
    return list_refusal_reasons(site.state, order, site.now)


@pytest.mark.parametrize(
    ("who", "samples", "tries"),
    [
        ("rita", True, True),
        ("raul", True, True),
        ("audrey", True, False),
        ("olga", False, False),
        ("anna", False, False),
        ("otto", False, False),
        ("legal", False, False),
    ],
)
def test_reviewers_preview_and_try_and_auditors_preview(who: str, samples: bool, tries: bool) -> None:
    site = stage("sealed")
    assert [not _may(site, who, action) for action in ("samples", "try")] == [samples, tries]


def test_an_adapter_needs_no_release_and_none_that_was_taken_away_is_looked_at() -> None:
    for spoil in (
        lambda site: site.revoke_dataset(),
        lambda site: site.revoke_base(),
    ):
        site = stage("sealed")
        spoil(site)
        assert any("revoked by entry" in str(reason) for reason in _may(site, "rita", "samples"))
        assert any("revoked by entry" in str(reason) for reason in _may(site, "rita", "try"))


def test_another_manifest_is_refused() -> None:
    site = stage("sealed")
    order = site.samples_order().model_copy(update={"manifest": MANIFEST})
    assert list_refusal_reasons(site.state, order, site.now)[0].code == "manifest-differs"


def test_prompts_are_counted_by_reviewer_and_day() -> None:
    site = stage("sealed", policy_set(tries_a_day=3)).fork()
    tried = site.try_adapter(prompts=_prompts(2))
    site.add(site.try_finished(order_of(tried), answers=(), code="x"), outcome="failure")
    assert _may(site, "rita", "try", prompts=_prompts(1)) == []
    (reason,) = _may(site, "rita", "try", prompts=_prompts(2))
    assert reason.code == "tries-used" and reason.values == {"limit": 3, "tried": 2, "count": 2}
    assert _may(site, "raul", "try", prompts=_prompts(3)) == []
    tomorrow = add_seconds(site.now, 86_400)
    assert list_refusal_reasons(site.state, site.try_order(prompts=_prompts(3)), tomorrow) == []


def test_a_person_has_one_preview_at_a_time() -> None:
    site = stage("sealed")
    order = order_of(site.view_samples())
    for action in ("samples", "try"):
        assert "trial-open" in {reason.code for reason in _may(site, "rita", action)}
        assert _may(site, "raul", action) == []
    site.add(site.samples_shown(order))
    assert _may(site, "rita", "try") == []


def test_no_prompts_are_tried_where_policy_says_none() -> None:
    assert Parameters(tries_a_day=0).tries_a_day == 0
    site = stage("sealed", policy_set(tries_a_day=0)).fork()
    assert _may(site, "rita", "try")[0].code == "tries-used"


def test_the_same_commitment_twice_is_refused() -> None:
    assert "prompt-repeated" in {
        reason.code for reason in _may(stage("sealed"), "rita", "try", prompts=_prompts(1) * 2)
    }


def test_a_preview_ends_once_and_shows_no_more_than_was_ordered() -> None:
    site = stage("sealed")
    order = order_of(site.view_samples(count=3))
    for fields, words in (
        ({"rows": 4}, "shown"),
        ({"by": "raul"}, "adapter and by"),
        ({"code": "x"}, "code"),
        ({"rows": 0}, "shown"),
    ):
        with pytest.raises(Denied, match=words):
            site.add(site.samples_shown(order, **{"rows": 3, **fields}))
    with pytest.raises(Denied, match="expected an open preview"):
        site.add(site.try_finished(order))
    site.add(site.samples_shown(order, rows=2))
    assert site.state.previews.get(order) is None
    with pytest.raises(Denied, match="expected an open preview"):
        site.add(site.samples_shown(order, rows=2))


def test_an_adapter_that_was_revoked_meanwhile_has_shown_nothing() -> None:
    site = stage("sealed")
    order = order_of(site.view_samples())
    site.revoke_dataset()
    with pytest.raises(Denied, match="one that can be looked at"):
        site.add(site.samples_shown(order))
    site.add(site.samples_shown(order, rows=0, code="denied"), outcome="failure")
    assert site.state.previews.get(order) is None


def test_a_try_has_an_answer_for_each_prompt_or_failed() -> None:
    site = stage("sealed")
    order = order_of(site.try_adapter(prompts=_prompts(2)))
    with pytest.raises(Denied, match="answers: expected 2, got 1"):
        site.add(site.try_finished(order))
    with pytest.raises(ApplianceError):
        site.add(site.try_finished(order), outcome="failure")
    site.add(site.try_finished(order, answers=(), code="out-of-memory"), outcome="failure")


def test_the_log_draws_the_rows_each_once_and_nobody_chooses() -> None:
    rows = list(range(100))
    drawn = draw_samples(MANIFEST, ROOT, rows, 20)
    assert len(set(drawn)) == 20
    assert draw_samples(MANIFEST, ROOT, rows, 5) == drawn[:5]
    assert draw_samples(MANIFEST, hashlib.sha256(b"another root").digest(), rows, 20) != drawn
    assert draw_samples("sha256:" + "cd" * 32, ROOT, rows, 20) != drawn
    assert sorted(draw_samples(MANIFEST, ROOT, rows[:3], 20)) == rows[:3]


def test_drawn_rows_are_those_that_the_page_specifies() -> None:
    """SHA-256 over the domain, the manifest's digest and the root is the key; the first 32-bit word of each draw's
    SHAKE-256 stream, by the rows that are left, is the place."""
    key = hashlib.sha256(b"appliance/samples/v1\x00" + bytes.fromhex("ab" * 32) + ROOT).digest()
    left, expected = list(range(10)), []
    for number in range(4):
        stream = hashlib.shake_256(key + number.to_bytes(8, "big")).digest(64)
        words = [int.from_bytes(stream[at : at + 4], "little") for at in range(0, 64, 4)]
        place = next(word % len(left) for word in words if word < 2**32 - 2**32 % len(left))
        expected.append(left.pop(place))
    assert draw_samples(MANIFEST, ROOT, list(range(10)), 4) == expected
