"""A unit loads an approved adapter on its own host from the exported folder and a trust file alone."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import pytest
import torch

from appliance.client.releases import fetch_export, write_export
from appliance.client.support.connection import Connection
from appliance.domain.core.names import add_seconds
from appliance.domain.releases.adapters import RevokeAdapter
from appliance.domain.releases.exports import ExportAdapter
from appliance.errors import ApplianceError, Denied, Tampered
from appliance.loader import load_approved
from appliance.ml.model.base import load_base
from scripts.kit.appliance import Appliance, Refused
from tests.attacks.test_admission import artifact, flip_byte


def order_export(site: Appliance, **changes: object) -> str:
    """Order an export as the release owner, and return the order's digest."""
    terms = {"unit": "legal", "served_model": "labels", **site.on("clauses@1"), **site.terms("lou")}
    until = add_seconds(site.now(), 3_600)
    return str(site.order(ExportAdapter(**{**terms, "valid_until": until, **changes}))["order"])


class Session:
    """The release owner's, as the command line holds one."""

    def __init__(self, site: Appliance) -> None:
        self._site = site

    def token(self, *, renew: bool = False) -> str:
        return self._site.session("lou")


load_own = partial(load_approved, unit="legal", served_model="labels")
"""As legal's own host does."""


def hand_out(site: Appliance, digest: str, folder: Path) -> Path:
    connection = Connection(site.settings.socket)
    connection.bearer = Session(site)
    with closing(connection):
        _, received = fetch_export(connection, digest, lambda size: None)
    write_export(folder, received, site.trust, unit="legal", served_model="labels")
    return folder


@pytest.fixture(scope="module")
def export(shared: Appliance, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """Return the exported folder, the base's folder and the trust file: all that a unit's host has."""
    place = tmp_path_factory.mktemp("host")
    shared.approve()
    shared.activate()
    folder = hand_out(shared, order_export(shared), place / "export")
    base = shutil.copytree(artifact(shared, shared.get("/v1/bases/tiny")["digest"]), place / "base")
    trust = Path(shutil.copy(shared.settings.trust, place / "trust.json"))
    return folder, base, trust


@pytest.mark.thorough
def test_it_is_loaded_and_answers_as_the_service_does(shared: Appliance, export: tuple[Path, Path, Path]) -> None:
    """Through peft, greedily, the tokens of the service's own answer."""
    folder, base, trust = export
    model = load_own(folder, base, trust)
    query = [{"role": "user", "content": "invoice and fee"}]
    answer = shared.chat("legal", "labels", "invoice and fee", max_tokens=4, temperature=0)
    chat = load_base(base, quantisation="nf4-double", compute_dtype="bfloat16", device="cpu").chat
    tokens = chat.encode(chat.render(query))
    for _ in range(4):
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0, -1]
        tokens.append(int(logits.argmax()))
        if tokens[-1] in chat.stop_ids():
            tokens.pop()
            break
    drawn = chat.decode(tokens[len(chat.encode(chat.render(query))) :])
    assert drawn == answer["choices"][0]["message"]["content"]
    [entry] = shared.entries(type="adapter.exported")
    assert entry["actor"] == "lou"
    assert shared.verify()["verdict"] == "verified"


def test_after_its_date_it_is_refused(export: tuple[Path, Path, Path]) -> None:
    with pytest.raises(Denied, match="expired at"):
        load_own(*export, now=datetime.now(UTC) + timedelta(hours=2))


@pytest.mark.parametrize(
    ("unit", "served_model", "code"),
    [("claims", "labels", "another-unit"), ("legal", "drafts", "another-served-model")],
)
def test_on_another_units_host_and_for_another_task_it_is_refused(
    export: tuple[Path, Path, Path], unit: str, served_model: str, code: str
) -> None:
    """Whole, in its time, under a trust file that both units hold; before a byte of the base is read."""
    folder, base, trust = export
    wanted = f"It was to be loaded for {unit} and {served_model}"
    with pytest.raises(Denied, match=wanted) as refused:
        load_approved(folder, base / "none", trust, unit=unit, served_model=served_model)
    assert refused.value.code == code


def test_who_does_not_say_for_whom_loads_nothing(export: tuple[Path, Path, Path]) -> None:
    with pytest.raises(TypeError, match="'unit' and 'served_model'"):
        load_approved(*export)  # type: ignore[call-arg]


def of_base(place: Path) -> None:
    flip_byte(place / "base" / "model.safetensors")


def of_weights(place: Path) -> None:
    flip_byte(place / "export" / "adapter" / "adapter_model.safetensors")


def of_recipe(place: Path) -> None:
    flip_byte(place / "export" / "adapter" / "recipe.json")


def of_rows(place: Path) -> None:
    flip_byte(place / "export" / "state-rows.json")


def link_weights(place: Path) -> None:
    path = place / "export" / "adapter" / "adapter_model.safetensors"
    path.rename(place / "elsewhere")
    path.symlink_to(place / "elsewhere")


def add_code(place: Path) -> None:
    (place / "base").chmod(0o700)
    (place / "base" / "modeling.py").write_text("print('run')")


@pytest.mark.family(keep=3)
@pytest.mark.parametrize("spoil", [of_base, of_weights, of_recipe, of_rows, link_weights, add_code])
def test_what_was_changed_on_the_units_host_is_refused(
    export: tuple[Path, Path, Path], tmp_path: Path, spoil: Callable[[Path], None]
) -> None:
    folder, base, trust = export
    shutil.copytree(folder, tmp_path / "export")
    shutil.copytree(base, tmp_path / "base")
    spoil(tmp_path)
    with pytest.raises(ApplianceError):
        load_own(tmp_path / "export", tmp_path / "base", trust)


def test_another_base_is_refused(export: tuple[Path, Path, Path], tmp_path: Path) -> None:
    folder, base, trust = export
    other = shutil.copytree(base, tmp_path / "base")
    flip_byte(other / "manifest.json")
    with pytest.raises(Tampered, match=r"base tiny: expected"):
        load_own(folder, other, trust)


def test_what_was_revoked_is_neither_ordered_nor_handed_out(released: Appliance, tmp_path: Path) -> None:
    digest = order_export(released)
    released.order(RevokeAdapter(**released.on("clauses@1"), **released.terms("rita")))
    with pytest.raises(ApplianceError, match="revoked by entry"):
        hand_out(released, digest, tmp_path / "export")
    assert not (tmp_path / "export").exists()
    with pytest.raises(Refused, match="revoked by entry"):
        order_export(released)


def test_another_units_release_owner_exports_nothing(shared: Appliance, export: tuple[Path, Path, Path]) -> None:
    with pytest.raises(Refused, match="This action needs release-owner:legal"):
        order_export(shared, signer="cleo")
    with pytest.raises(Refused, match="is not active under this name"):
        order_export(shared, unit="claims", signer="cleo")
