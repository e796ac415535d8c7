"""The life of a private adapter: trained, replayed, its guarantee in the manifest, its secret in the keyring alone."""

from __future__ import annotations

import json
import os

import pytest

from appliance.domain.runs.steps import parse_steps
from appliance.formats.artifacts.manifest import parse_manifest
from scripts.kit.appliance import Appliance, Refused
from tests.attacks.test_kill import check_whole
from tests.attacks.test_training import replay, replay_order, run_named

RECIPE = {"epochs": 2, "save_steps": 5, "privacy": {"noise": 1.0, "clip": 0.5, "delta": 0.001}}


@pytest.mark.thorough
def test_a_private_run_is_replayed_and_only_the_keyring_knows_its_secret(site: Appliance) -> None:
    assert site.train("quiet", **RECIPE)["adapter"] == "quiet@1"
    run = run_named(site, "quiet")
    entries = {entry["type"]: entry["body"] for entry in site.entries() if f"run:{run['id']}" in entry["subjects"]}
    secret = site.home / "keys" / f"noise-{run['id']}.secret"
    drawn = secret.read_bytes()
    assert entries["run.started"]["secret"] == run["secret"] and len(drawn) == 32
    assert entries["run.finished"]["final_loss"] is None
    folder = site.home / "artifacts" / site.adapter("quiet@1")["manifest"].removeprefix("sha256:")
    manifest, recipe = (folder / "manifest.json").read_bytes(), json.loads((folder / "recipe.json").read_bytes())
    guarantee = parse_manifest(manifest).privacy
    assert guarantee is not None and (guarantee.epsilon, guarantee.delta) == (recipe["privacy"]["epsilon"], "0.001")
    steps = parse_steps((folder / "steps.jsonl").read_bytes())
    assert {(step.loss, step.rows, step.seconds, step.peak_bytes) for step in steps} == {(None, (), "0.000", 0)}
    for path in (path for path in site.home.rglob("*") if path.is_file() and path != secret):
        data = path.read_bytes()
        assert drawn not in data and drawn.hex().encode() not in data, path
    assert replay(site, "quiet", (5, len(steps)))["verdict"] == "identical"
    check_whole(site)

    # Another secret is not the one that the log binds; without one nothing is trained again.
    secret.write_bytes(os.urandom(32))
    with pytest.raises(Refused, match=r"expected the secret that run\.started binds"):
        site.order(replay_order(site, "quiet", (0, 5)))
    secret.unlink()
    with pytest.raises(Refused, match="expected the secret of its noise in the keyring, got none"):
        site.order(replay_order(site, "quiet", (0, 5)))
