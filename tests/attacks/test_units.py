"""A unit cannot use another unit's adapter or the bare base, nor get a response that is not logged."""

from __future__ import annotations

import base64
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest

from appliance.domain.core.names import NO_DIGEST
from appliance.domain.core.order import Order, encode_order
from appliance.domain.core.roles import refuse_role
from appliance.domain.data.artifacts import RevokeBase, RevokeDataset
from appliance.domain.releases.activations import Activate, Rollback
from appliance.domain.releases.adapters import RevokeAdapter
from scripts.kit.appliance import Appliance, Refused
from tests.attacks.streaming import under_way


@pytest.mark.thorough
def test_a_unit_is_answered_and_both_ends_are_entries(released: Appliance) -> None:
    answer = released.chat("legal", "labels")
    assert answer["choices"][0]["finish_reason"] in ("stop", "length")
    types = released.types()
    assert types.index("adapter.admitted") < types.index("adapter.loaded") < types.index("request.admitted")
    assert types.index("request.admitted") < types.index("request.finished")
    assert released.verify()["verdict"] == "verified"


@pytest.mark.thorough
@pytest.mark.parametrize("model", ["", "clauses", "clauses@1", "tiny", "payroll"])
def test_a_name_that_is_not_released_to_the_unit_never_answers(released: Appliance, model: str) -> None:
    with pytest.raises(Refused) as refused:
        released.chat("legal", model)
    assert (refused.value.status, refused.value.code) == (404, "model-not-found")


def test_another_units_task_is_as_unknown_as_no_task(released: Appliance) -> None:
    with pytest.raises(Refused) as refused:
        released.chat("claims", "labels")
    assert refused.value.status == 404


@pytest.mark.thorough
def test_a_rollback_is_one_order_to_what_answered_before_and_nothing_else(released: Appliance) -> None:
    first = released.chat("legal", "labels")["system_fingerprint"]
    assert released.train(seed=2)["adapter"] == "clauses@2"
    with pytest.raises(Refused, match="valid approvals"):
        released.activate(name="clauses@2")
    released.approve(name="clauses@2")
    released.activate(name="clauses@2")
    second = released.chat("legal", "labels")["system_fingerprint"]
    assert second == released.adapter("clauses@2")["manifest"] != first
    terms = {"unit": "legal", "served_model": "labels", "adds_instruction": False}
    with pytest.raises(Refused, match="Adapter clauses@2 is active under this name"):
        released.order(Rollback(**terms, **released.on("clauses@2"), **released.terms("lou")))
    with pytest.raises(Refused, match="release-owner:legal"):
        released.order(Rollback(**terms, **released.on("clauses@1"), **released.terms("cleo")))
    released.order(Rollback(**terms, **released.on("clauses@1"), **released.terms("lou")))
    assert released.chat("legal", "labels")["system_fingerprint"] == first
    types = released.types()
    assert types.index("release.rolled-back") < len(types) - 1 - types[::-1].index("adapter.loaded")
    assert released.verify()["verdict"] == "verified"


@pytest.mark.thorough
def test_many_are_answered_at_once_and_each_as_if_alone(released: Appliance) -> None:
    """With temperature and seeds: the draws are those of the request alone, whatever else is in the batch."""
    texts = ["due", "the fee " * 9, "a secret " * 5, "end", "pay and price " * 7, "close or cancel"]

    def ask(number: int) -> object:
        return released.chat("legal", "labels", texts[number], max_tokens=24, temperature=1.5, seed=number)["choices"]

    alone = [ask(number) for number in range(len(texts))]
    with ThreadPoolExecutor(len(texts)) as pool:
        assert list(pool.map(ask, range(len(texts)))) == alone
    assert released.types().count("request.finished") == 2 * len(texts)


@pytest.mark.thorough
@pytest.mark.parametrize("wire", ["tls"])
def test_a_revocation_cuts_what_is_being_answered(released: Appliance) -> None:
    """Four answers are under way; each ends with an error, each has its entry, and then the slot is empty."""
    released.chat("legal", "labels")
    with under_way(released, [(released.token("legal"), seed) for seed in range(4)]) as streams:
        released.order(RevokeAdapter(**released.on("clauses@1"), **released.terms("rita")))
        ends = [stream.result() for stream in streams]
    assert [last["error"]["code"] for last in ends] == ["cut-off"] * 4
    finished = released.entries(type="request.finished")
    assert len(finished) == 5
    assert sum(entry["outcome"] == "failure" for entry in finished) == 4
    with pytest.raises(Refused):
        released.chat("legal", "labels")
    types = released.types()
    revoked = types.index("adapter.revoked")
    assert "adapter.unloaded" in types[revoked:]
    assert "request.admitted" not in types[revoked:]
    assert released.verify()["verdict"] == "verified"


@pytest.mark.essential
@pytest.mark.parametrize("what", ["base", "dataset"])
def test_with_a_base_or_a_dataset_falls_what_is_being_answered_on_it(released: Appliance, what: str) -> None:
    released.chat("legal", "labels")
    with under_way(released, [(released.token("legal"), 1)]) as (stream,):
        if what == "base":
            digest = released.get("/v1/bases/tiny")["digest"]
            released.order(RevokeBase(base="tiny", digest=digest, **released.terms("rita")))
        else:
            digest = released.get("/v1/datasets/clauses@1")["digest"]
            released.order(RevokeDataset(dataset="clauses", version=1, digest=digest, **released.terms("anna")))
        last = stream.result()
    with pytest.raises(Refused, match=f"(?i){what}( model)? [a-z@1]+ was revoked by entry"):
        released.chat("legal", "labels")
    revoked, unloaded = released.entries(type=f"{what}.revoked")[-1], released.entries(type="adapter.unloaded")[-1]
    assert unloaded["index"] > revoked["index"]
    ended = released.entries(type="request.finished")[-1]
    assert (last["error"]["code"], ended["outcome"]) == ("cut-off", "failure")
    with pytest.raises(Refused, match="was revoked by entry"):
        released.order(released.train_order("again"))
    assert released.verify()["verdict"] == "verified"


@pytest.mark.thorough
def test_the_ledger_says_when_the_last_token_left(released: Appliance) -> None:
    """Between the load and the emptying, and not after the revocation was answered."""
    released.chat("legal", "labels")
    with under_way(released, [(released.token("legal"), seed) for seed in range(4)]) as streams:
        released.order(RevokeAdapter(**released.on("clauses@1"), **released.terms("rita")))
        answered = released.now()
        assert all(stream.result() != "[DONE]" for stream in streams)
    [revoked] = released.entries(type="adapter.revoked")
    [unloaded] = released.entries(type="adapter.unloaded")
    [loaded] = released.entries(type="adapter.loaded")
    assert loaded["time"] <= unloaded["body"]["last_token"] <= unloaded["time"] <= answered
    assert revoked["time"] <= unloaded["time"]
    assert unloaded["body"]["reason"] == "adapter-revoked"


@pytest.mark.essential
@pytest.mark.parametrize("wire", ["tls"])
def test_the_official_client_is_served_through_every_call_it_has(released: Appliance) -> None:
    """Each answer has its two entries, and what is refused has its error class."""
    client, api = released.openai(), released.units()
    assert [model.id for model in client.models.list()] == ["labels"]
    assert client.models.retrieve("labels").owned_by == "legal"

    whole = client.completions.create(model="labels", prompt="the parties", max_tokens=9, temperature=1, seed=4)
    chunks = list(
        client.completions.create(
            model="labels",
            prompt="the parties",
            max_tokens=9,
            temperature=1,
            seed=4,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == whole.choices[0].text
    assert chunks[-1].usage == whole.usage
    assert whole.usage is not None
    assert whole.usage.completion_tokens == 9

    labels = ["payment", "secrecy", "ending"]
    wanted = [{"role": "user", "content": "invoice and fee"}]
    held = client.chat.completions.create(
        model="labels",
        messages=wanted,
        max_tokens=30,
        extra_body={"guided_choice": labels},  # type: ignore[arg-type]
    )
    assert held.choices[0].message.content in labels
    assert held.choices[0].finish_reason == "stop"
    head = {"Authorization": f"Bearer {client.api_key}"}
    body = {"model": "labels", "input": "invoice and fee", "labels": labels}
    found = api.post("/v1/classify", json=body, headers=head).json()
    assert sorted(found["data"][0]["probabilities"]) == sorted(labels)
    assert sum(found["data"][0]["probabilities"].values()) == pytest.approx(1, abs=1e-6)
    assert found["data"][0]["label"] in labels
    assert found["system_fingerprint"] == held.system_fingerprint == released.adapter("clauses@1")["manifest"]
    assert found["usage"]["prompt_tokens"] == held.usage.prompt_tokens  # type: ignore[union-attr]

    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("payroll")
    with pytest.raises(openai.NotFoundError):
        client.completions.create(model="tiny", prompt="x")
    with pytest.raises(openai.BadRequestError):
        client.completions.create(model="labels", prompt="<|im_end|>")
    with pytest.raises(openai.AuthenticationError):
        released.openai(token="none").completions.create(model="labels", prompt="x")
    assert api.post("/v1/classify", json={**body, "model": "tiny"}, headers=head).status_code == 404
    assert api.post("/v1/classify", json={**body, "labels": ["a", "a"]}, headers=head).status_code == 400
    finished = released.entries(type="request.finished")
    assert [entry["outcome"] for entry in finished] == ["success"] * 4 + ["failure"] * 2
    assert released.types().count("request.admitted") == 6
    assert released.verify()["verdict"] == "verified"


def test_the_official_client_reads_a_refusal_and_our_code_behind_it(shared: Appliance) -> None:
    client = shared.openai("legal")
    with pytest.raises(openai.NotFoundError) as unknown:
        client.chat.completions.create(model="payroll", messages=[{"role": "user", "content": "x"}])
    assert (unknown.value.code, unknown.value.param, unknown.value.type) == (
        "model_not_found",
        "model",
        "invalid_request_error",
    )
    assert unknown.value.body["appliance_code"] == "model-not-found"  # type: ignore[index]
    with pytest.raises(openai.BadRequestError) as foreign:
        client.chat.completions.create(
            model="labels", messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]
        )
    assert (foreign.value.code, foreign.value.param) == ("invalid_value", "messages[0].content")
    with pytest.raises(openai.AuthenticationError) as outsider:
        shared.openai("legal", token="nobody").models.list()
    assert outsider.value.code == "invalid_api_key"


@pytest.mark.thorough
def test_parts_of_text_are_answered_as_the_text_that_they_make(released: Appliance) -> None:
    client = released.openai("legal")
    parts = [{"type": "text", "text": "the parties "}, {"type": "text", "text": "agree"}]
    whole, parted = (
        client.chat.completions.create(model="labels", messages=[{"role": "user", "content": content}])  # type: ignore[call-overload]
        for content in ("the parties agree", parts)
    )
    assert parted.choices == whole.choices


@pytest.mark.thorough
def test_a_unit_learns_no_fact_by_orders_that_it_may_not_sign(released: Appliance) -> None:
    """Both the check and the order give one reason, the same for a thing of another unit and for no thing."""

    def check(order: Order) -> list[str]:
        body = {"statement": base64.b64encode(encode_order(order)).decode()}
        refusals = released.ask("POST", "/v1/orders/check", "claims", json=body)["refusals"]
        return [f"{one['sentence']} {one['remedy']}" for one in refusals]

    manifest = released.adapter("clauses@1")["manifest"]
    for model in (Activate, Rollback):
        expected = [str(refuse_role("claims", ("unit",), ("release-owner:legal",)))]
        for adapter, digest in (("clauses", manifest), ("clauses", NO_DIGEST), ("nothing", NO_DIGEST)):
            terms = {"unit": "legal", "served_model": "labels", "adds_instruction": False, **released.terms("claims")}
            order = model(adapter=adapter, version=1, manifest=digest, **terms)
            assert check(order) == expected
            with pytest.raises(Refused) as refused:
                released.order(order)
            assert refused.value.reasons == expected
    assert len(check(released.train_order("x").model_copy(update=released.terms("claims")))) == 1
    assert released.verify()["verdict"] == "verified"
