"""vLLM as the engine, inside the sandbox: evaluated, sealed, approved, released, asked, revoked, and verified."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from decimal import Decimal

import pytest

from appliance.domain.queries.proofs import MEMBER
from appliance.domain.releases.adapters import RevokeAdapter
from scripts.kit.appliance import ROOT, Appliance, Refused, found_site
from scripts.kit.ports import free_port
from scripts.kit.tiny_model import build_base, clauses, write_csv
from scripts.kit.waiting import wait_for
from tests.attacks.streaming import under_way

PACKAGES = next((ROOT / ".venv-vllm" / "lib").glob("python3*/site-packages"), ROOT / ".venv-vllm")
LABELS = ("payment", "secrecy", "term")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Appliance]:
    """`clauses@1` is evaluated on the own engine alone, `clauses@2` on vLLM too, which is the engine now."""
    if not PACKAGES.is_dir():
        pytest.skip("vLLM: scripts/setup --vllm installs it")
    folder = tmp_path_factory.mktemp("vllm")
    made = found_site(folder / "h", free_port())
    # vLLM's attention on the CPU takes heads of 32 and more.
    assert made.import_base(build_base(folder / "base", num_attention_heads=2))["status"] == "finished"
    assert made.import_dataset(write_csv(folder / "rows.csv", clauses()).read_bytes())["status"] == "finished"
    assert made.train()["adapter"] == "clauses@1"
    made.stop()
    (made.home / "appliance.toml").write_text(f'engine = "vllm"\nvllm_packages = "{PACKAGES}"\n')
    made.start()
    assert made.train()["adapter"] == "clauses@2"
    yield made
    if made.service is not None:
        made.kill()


pytestmark = pytest.mark.outside


def test_what_vllm_made_of_the_held_out_rows_is_sealed(site: Appliance) -> None:
    first, second = site.entries(type="adapter.sealed")
    assert "engines" not in first["body"]["metrics"]
    found = second["body"]["metrics"]["engines"]["vllm"]
    own = second["body"]["metrics"]["adapter"]
    assert found["rows"] == own["rows"] and found["form"] == "nf4-double as bfloat16"
    assert Decimal(found["logit_difference"]) <= Decimal(found["logit_tolerance"])
    assert abs(Decimal(found["loss"]) - Decimal(own["loss"])) < Decimal("0.1")
    assert abs(Decimal(found["accuracy"]) - Decimal(own["accuracy"])) <= Decimal("0.1")


def test_an_adapter_that_was_not_evaluated_on_vllm_does_not_answer(site: Appliance) -> None:
    site.approve()
    site.activate()
    with pytest.raises(Refused) as refused:
        site.chat("legal", "labels")
    assert refused.value.code == "not-admitted"
    refusals = site.entries(type="admission.refused")[-1]["body"]["refusals"]
    assert [one["code"] for one in refusals] == ["not-evaluated-on-engine"]


def test_one_that_was_answers_chats_streams_labels_and_classifications(site: Appliance) -> None:
    site.approve(name="clauses@2")
    site.activate(name="clauses@2")
    client = site.openai()
    messages = [{"role": "user", "content": "the parties agree"}]
    whole = client.chat.completions.create(model="labels", messages=messages, max_tokens=8, temperature=0)  # type: ignore[arg-type]
    again = client.chat.completions.create(model="labels", messages=messages, max_tokens=8, temperature=0, stream=True)  # type: ignore[arg-type]
    streamed = "".join(chunk.choices[0].delta.content or "" for chunk in again if chunk.choices)
    assert streamed == whole.choices[0].message.content
    assert whole.usage is not None and whole.usage.completion_tokens > 0
    with site.units() as api:
        head = {"Authorization": f"Bearer {site.token('legal')}"}
        body = {"model": "labels", "input": "payment is due", "labels": list(LABELS)}
        told = api.post("/v1/classify", json=body, headers=head, timeout=120).json()
        shares = told["data"][0]["probabilities"]
        assert set(shares) == set(LABELS) and sum(shares.values()) == pytest.approx(1, abs=1e-6)
        body = {"model": "labels", "messages": messages, "labels": list(LABELS), "temperature": 0}
        chosen = api.post("/v1/chat/completions", json=body, headers=head, timeout=120).json()
        if "choices" in chosen:
            assert chosen["choices"][0]["message"]["content"] in LABELS
    (loaded,) = site.entries(type="adapter.loaded")
    assert (loaded["body"]["engine"], loaded["body"]["logit_fingerprint"]) == ("vllm", "close")
    finished = site.entries(type="request.finished")
    assert {entry["body"]["engine"] for entry in finished if entry["outcome"] == "success"} == {"vllm"}
    record = (whole.model_extra or {})[MEMBER]
    assert '"engine":"vllm"' in record["entry"], "the unit's own record says that its bits may depend on others"


def test_many_at_once_get_an_answer_each_and_only_their_own(site: Appliance) -> None:
    texts = [f"the parties agree on number {number}" for number in range(16)]
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda text: site.chat("legal", "labels", text, max_tokens=6), texts))
    assert all(answer["choices"][0]["finish_reason"] in ("stop", "length") for answer in answers)
    assert len({answer["id"] for answer in answers}) == 16


def test_a_worker_that_dies_is_empty_and_the_next_request_loads_by_admission_again(site: Appliance) -> None:
    before = len(site.entries(type="adapter.loaded"))
    found = subprocess.run(["pgrep", "-f", "appliance.worker.serve_vllm"], capture_output=True, text=True).stdout
    for pid in found.split():
        os.kill(int(pid), signal.SIGKILL)

    def responds() -> bool:
        """Return True if the engine responds. It refuses requests while it starts again."""
        with suppress(Refused):
            return bool(site.chat("legal", "labels", max_tokens=4)["choices"])
        return False

    wait_for(responds, "a response of the next engine")
    assert len(site.entries(type="adapter.loaded")) == before + 1


def test_a_revocation_cuts_answers_and_takes_the_adapter_out(site: Appliance) -> None:
    with under_way(site, [(site.token("legal"), seed) for seed in range(4)], None, hold=False) as answers:
        site.order(RevokeAdapter(**site.on("clauses@2"), **site.terms("rita")))
    told = [answer.result() for answer in answers]
    assert all(end == "[DONE]" or end["error"]["appliance_code"] == "cut-off" for end in told)
    assert any(end != "[DONE]" for end in told)
    assert site.entries(type="adapter.unloaded")[-1]["body"]["adapter"] == "clauses@2"
    with pytest.raises(Refused):
        site.chat("legal", "labels")
    assert site.verify()["verdict"] == "verified"
