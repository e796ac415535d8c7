"""Checks on a card: a run in the sandbox, its resume, evaluation, mixed batches, a revocation."""

from __future__ import annotations

from typing import Any

import pytest

from appliance.ml.model import machine
from appliance.ml.model.base import load_base
from appliance.sandbox.local import Worker
from tests.gpu.conftest import DEVICE, Frame, Site, receive
from tests.kit.mixes import answer_mixed, check_alone

pytestmark = pytest.mark.gpu

ADAPTER = "adapter_model.safetensors"
OPTIMISERS = ["adamw", "adamw-8bit", "paged-adamw-8bit"] if DEVICE == "cuda" else ["adamw-8bit"]


def test_a_run_trains_in_the_sandbox(site: Site, trained: tuple[Frame, list[Frame]]) -> None:
    result, frames = trained
    losses = [frame["loss"] for frame in frames if frame["frame"] == "step"]
    assert result["device"] == DEVICE
    assert len(losses) == result["steps"] > 8
    assert sum(losses[-4:]) < 0.8 * sum(losses[:4])
    assert 0 < result["peak_bytes"] < 64 << 30


@pytest.mark.parametrize("optimiser", OPTIMISERS)
def test_a_run_again_and_a_resumed_run_give_the_same_bytes(site: Site, optimiser: str) -> None:
    """Weights large enough that bitsandbytes keeps their moments in 8 bits."""
    name = f"again-{optimiser}"
    own = Site(site.root, site.recipe | {"optimiser": optimiser, "rank": 64, "epochs": 1})
    first, frames = own.train(f"{name}-0")
    again, _ = own.train(f"{name}-1")
    kept = next(frame for frame in frames if frame["frame"] == "checkpoint")
    assert kept["step"] < first["steps"]
    data = (site.root / f"{name}-0-checkpoints" / kept["file"]).read_bytes()
    resumed, rest = own.train(f"{name}-2", data)
    assert rest[0]["step"] == kept["step"] + 1
    assert first["losses"] == again["losses"] == resumed["losses"]
    weights = {(site.root / f"{name}-{number}" / ADAPTER).read_bytes() for number in range(3)}
    assert len(weights) == 1


def test_an_evaluation_finds_the_adapter_better_and_repeats_bit_for_bit(site: Site, evaluated: Frame) -> None:
    again = site.evaluate("adapter")
    assert {key: again[key] for key in ("base", "adapter", "logit_fingerprint")} == {
        key: evaluated[key] for key in ("base", "adapter", "logit_fingerprint")
    }
    assert evaluated["logit_fingerprint"]["base_digest"] != evaluated["logit_fingerprint"]["adapter_digest"]
    assert evaluated["base"] != evaluated["adapter"]


def test_an_adapter_of_a_gptq_base_is_trained_resumed_and_evaluated(gptq_site: Site) -> None:
    first, frames = gptq_site.train("gptq-0")
    kept = next(frame for frame in frames if frame["frame"] == "checkpoint")
    data = (gptq_site.root / "gptq-0-checkpoints" / kept["file"]).read_bytes()
    resumed, _ = gptq_site.train("gptq-1", data)
    assert first["losses"] == resumed["losses"]
    assert float(first["losses"][-1]) < 0.8 * float(first["losses"][0])
    weights = {(gptq_site.root / f"gptq-{number}" / ADAPTER).read_bytes() for number in range(2)}
    assert len(weights) == 1
    found = gptq_site.evaluate("gptq-0")
    assert found["logit_fingerprint"]["base_digest"] != found["logit_fingerprint"]["adapter_digest"]


@pytest.mark.parametrize("quantisation", ["nf4-double", "gptq", "none"])
def test_a_row_s_logits_are_the_same_bits_alone_and_in_a_mixed_batch(
    site: Site, gptq_site: Site, quantisation: str
) -> None:
    machine.use_determinism(0)
    folder = site.root / (gptq_site.base if quantisation == "gptq" else site.base)
    base = load_base(folder, quantisation=quantisation, compute_dtype="bfloat16", device=DEVICE, own_layers=True)
    check_alone(base, answer_mixed(base))


def test_a_revocation_in_the_middle_of_a_stream_ends_it_and_leaves_its_neighbour_alone(server: Worker) -> None:
    asked = {"frame": "generate", "messages": [{"role": "user", "content": "invoice and fee"}], "max_tokens": 150}
    asked |= {"temperature": 2.0, "seed": 1}
    alone = _answer(server, {**asked, "id": "alone", "slot": "two"})
    for name, slot in (("revoked", "one"), ("other", "two")):
        server.send({**asked, "id": name, "slot": slot})
    frames: list[Frame] = []
    while {frame["id"] for frame in frames} != {"revoked", "other"}:
        frames += _told(server)
    server.send({"frame": "unload", "slot": "one"})
    while not any(frame["frame"] == "unloaded" for frame in frames):
        frames += _told(server)
    (end,) = (frame for frame in frames if frame["frame"] == "failure")
    assert (end["id"], end["code"]) == ("revoked", "cut-off")
    while frames[-1]["frame"] != "done":
        frames += _told(server)
    after = frames[next(place for place, frame in enumerate(frames) if frame["frame"] == "unloaded") :]
    assert not [frame for frame in after if frame.get("id") == "revoked"]
    assert "".join(frame["text"] for frame in frames if frame["frame"] == "token" and frame["id"] == "other") == alone


def _told(server: Worker) -> list[Frame]:
    """Return the frames that were sent together."""
    frame = receive(server)
    told: list[Frame] = frame["frames"] if frame["frame"] == "frames" else [frame]
    return told


def _answer(server: Worker, asked: dict[str, Any]) -> str:
    server.send(asked)
    text = ""
    while True:
        for frame in _told(server):
            if frame["frame"] != "token":
                assert frame["frame"] == "done", frame
                return text
            text += frame["text"]


def test_the_record_names_the_card(trained: tuple[Frame, list[Frame]]) -> None:
    kept = next(frame for frame in trained[1] if frame["frame"] == "checkpoint")
    assert kept["machine"] == machine.describe_kind(DEVICE)
