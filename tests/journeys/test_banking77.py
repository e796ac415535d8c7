"""The real job on the real model: public bank questions, from the file to an answered and verified request."""

from __future__ import annotations

import csv
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from openai import NotFoundError, OpenAI

from appliance.domain.data.imports import ImportBase
from appliance.formats.core.digest import digest_file
from scripts.kit.appliance import ROOT, Appliance, found_site
from scripts.kit.ports import free_port

DATA = ROOT.parent / "shared" / "data" / "banking77" / "train.csv"
CACHE = ROOT / ".cache"
INTENTS = (
    "card_arrival",
    "lost_or_stolen_card",
    "exchange_rate",
    "change_pin",
    "top_up_failed",
    "request_refund",
)
ROWS_AN_INTENT = 36
RECIPE = {"rank": 16, "alpha": 32, "epochs": 2, "learning_rate": "auto", "batch_size": 16}


def sample() -> tuple[bytes, int]:
    """Return the first rows of a few intents, as a CSV file of text and label."""
    with DATA.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    chosen = [row for intent in INTENTS for row in [r for r in rows if r["category"] == intent][:ROWS_AN_INTENT]]
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(["question", "intent"])
    writer.writerows((" ".join(row["text"].split()), row["category"].replace("_", " ")) for row in chosen)
    return out.getvalue().encode(), len(chosen)


def fetch_base() -> Path:
    command = [sys.executable, str(ROOT / "scripts" / "fetch_base.py"), str(CACHE)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return Path(done.stdout.strip().splitlines()[-1])


def import_gguf(site: Appliance, path: Path) -> None:
    with path.open("rb") as stream:
        site.ask("PUT", f"/v1/uploads/{digest_file(path)}", content=stream.read())
    order = ImportBase(
        base="smollm2", format="gguf", source=digest_file(path), licence="Apache-2.0", **site.terms("olga")
    )
    found = site.wait_import(site.order(order)["order"])
    assert found["status"] == "finished", found


@pytest.mark.outside
@pytest.mark.thorough
@pytest.mark.timeout(1_500)
def test_bank_questions_go_through_the_whole_journey_and_the_adapter_beats_the_base(tmp_path: Path) -> None:
    if not DATA.exists():
        pytest.skip(f"{DATA}: expected the public dataset banking77, got no such file")
    port = free_port()
    site = found_site(tmp_path / "h", port)
    try:
        import_gguf(site, fetch_base())
        rows, count = sample()
        dataset = site.import_dataset(
            rows,
            "bank",
            "smollm2",
            columns={"text": "question", "label": "intent"},
            instruction="Name the intent of the customer's question.",
        )
        assert dataset["result"]["facts"]["rows"] == count
        run = site.train("bank", base="smollm2", dataset="bank@1", **RECIPE)
        assert run["adapter"] == "bank@1", run
        metrics = site.entries(type="adapter.sealed")[0]["body"]["metrics"]
        assert float(metrics["adapter"]["accuracy"]) > float(metrics["base"]["accuracy"]) + 0.3, metrics
        assert float(metrics["adapter"]["macro_f1"]) > float(metrics["base"]["macro_f1"]) + 0.3, metrics
        site.approve(name="bank@1")
        site.activate(name="bank@1", served_model="intents")
        check_client(site, port)
        assert site.verify()["verdict"] == "verified"
        check_auditor(site, tmp_path)
    finally:
        site.stop()


def check_client(site: Appliance, port: int) -> None:
    """Check that the official client gets and streams an answer, and sees its own served model only."""
    with OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key=site.token("legal"), max_retries=0) as client:
        assert [model.id for model in client.models.list()] == ["intents"]
        messages = [
            {"role": "system", "content": "Name the intent of the customer's question."},
            {"role": "user", "content": "My card was stolen on the train, what now?"},
        ]
        whole = client.chat.completions.create(model="intents", messages=messages, max_tokens=12)
        assert whole.choices[0].message.content in {intent.replace("_", " ") for intent in INTENTS}
        stream = client.chat.completions.create(model="intents", messages=messages, max_tokens=12, stream=True)
        pieces = [chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices]
        assert "".join(pieces) == whole.choices[0].message.content
        with pytest.raises(NotFoundError):
            client.chat.completions.create(model="bank@1", messages=messages)
    requests = [entry for entry in site.entries(type="request.finished") if entry["outcome"] == "success"]
    assert len(requests) == 2
    assert "stolen" not in str(requests), "the ledger holds keyed digests, never the text"


def check_auditor(site: Appliance, place: Path) -> None:
    """Check that the export verifies with only the trust file, in a process without a home."""
    export, trust = place / "ledger.tar", place / "trust.json"
    export.write_bytes(site.get("/v1/ledger/export", "axel"))
    trust.write_bytes(site.settings.trust.read_bytes())
    command = [sys.executable, "-m", "appliance.verifier", str(export), "--trust", str(trust)]
    environment = {**os.environ, "APPLIANCE_HOME": str(place / "nowhere"), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "verified" in done.stdout
