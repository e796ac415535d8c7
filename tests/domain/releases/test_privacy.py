"""The privacy section of the review page: one run, the sum over private runs, and runs without privacy."""

from __future__ import annotations

from typing import Any

from appliance.domain.queries.review.reported_state import list_trained_before
from appliance.domain.queries.review.values import PrivacySummary, PrivateRun, TrainedBefore
from appliance.domain.recipe.privacy import find_epsilon
from appliance.formats.artifacts.manifest import PrivacyGuarantee
from appliance.formats.core.digest import digest_bytes
from appliance.reports.review.words import describe_privacy
from scripts.kit.log_builder import LogBuilder, stage

EPSILON = find_epsilon(8, 4, 2, "1.0", "0.01")
PRIVATE: dict[str, Any] = {
    "privacy": {"noise": "1.0", "clip": "1.0", "epsilon": EPSILON, "delta": "0.01"},
    "dropout": "0.0",
    "max_grad_norm": "0.0",
}


def begin(site: LogBuilder) -> str:
    run = site.request_run(recipe=PRIVATE)
    site.add(site.started(run, secret=digest_bytes(run.encode())))
    return run


def seal(site: LogBuilder, version: int) -> None:
    run = begin(site)
    site.add(site.checkpointed(run))
    site.add(site.finished(run, final_loss=None))
    site.seal(run, version, privacy=PrivacyGuarantee(epsilon=EPSILON, delta="0.01"))


def test_every_run_that_began_on_the_dataset_before_counts_whatever_became_of_it() -> None:
    site = stage("staffed")
    site.import_base()
    site.import_dataset(facts={"rows": 10, "train_rows": 8})
    seal(site, 1)
    assert list_trained_before(site.state, site.state.adapters.get("clauses@1")) == TrainedBefore(private=(), plain=0)
    site.seal(site.train(), 2)
    cut = begin(site)
    waiting = site.request_run(recipe=PRIVATE)
    seal(site, 3)
    found = list_trained_before(site.state, site.state.adapters.get("clauses@3"))
    assert [one.run for one in found.private] == ["r-000001", cut] and waiting not in str(found)
    assert found.plain == 1
    # Those that came later change nothing.
    assert list_trained_before(site.state, site.state.adapters.get("clauses@1")) == TrainedBefore(private=(), plain=0)


def test_the_words_say_what_is_added_up_and_what_is_not_covered() -> None:
    before = TrainedBefore(private=(PrivateRun(run="r-000001", epsilon="2.0", delta="0.001"),), plain=1)
    page = PrivacySummary(
        epsilon="3.0", delta="0.001", noise="1.0", clip="0.5", epsilon_all="5.0", delta_all="0.002", before=before
    )
    told = dict(describe_privacy(page))
    assert told["Epsilon"] == "3.0 at delta 0.001, for one training row"
    assert told["A person's rows"].startswith("not this epsilon")
    assert told["With earlier runs"].startswith("epsilon 5.0 at delta 0.002, added up over this and 1 private run on")
    assert told["Not covered"] == "1 adapter was trained on the same dataset before without privacy"
    alone = page.model_copy(update={"before": TrainedBefore(private=(), plain=0)})
    assert {"With earlier runs", "Not covered"}.isdisjoint(dict(describe_privacy(alone)))
