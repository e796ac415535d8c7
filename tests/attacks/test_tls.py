"""The units' API under the site's own CA: peers, protocol versions, and refused starts."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from scripts.kit.appliance import Appliance
from scripts.kit.certificates import Authority


@pytest.fixture(scope="module")
def wire() -> str:
    return "tls"


@pytest.fixture
def made(spoil: Callable[[], Appliance]) -> Iterator[Appliance]:
    site = spoil()
    yield site
    if site.service is not None:
        site.stop()


def authority(site: Appliance) -> Authority:
    assert site.authority is not None
    return site.authority


def get(site: Appliance, verify: ssl.SSLContext, url: str | None = None) -> httpx.Response:
    head = {"Authorization": f"Bearer {site.token('legal')}"}
    with httpx.Client(verify=verify, timeout=90) as client:
        return client.get(f"{url or site.url}/v1/models", headers=head)


def test_the_official_client_trusts_the_sites_ca_and_no_other(shared: Appliance, tmp_path: Path) -> None:
    assert shared.url.startswith("https://")
    assert [model.id for model in shared.openai().models.list()] == []
    for outsider in (Authority(tmp_path / "other").trusting(), ssl.create_default_context()):
        with httpx.Client(verify=outsider) as http, pytest.raises(openai.APIConnectionError):
            openai.OpenAI(
                base_url=f"{shared.url}/v1", api_key=shared.token("legal"), http_client=http, max_retries=0
            ).models.list()


def test_old_protocols_and_weak_ciphers_are_not_spoken(shared: Appliance) -> None:
    old = authority(shared).trusting()
    with pytest.warns(DeprecationWarning):
        old.minimum_version, old.maximum_version = ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1
    old.set_ciphers("ALL:@SECLEVEL=0")
    weak = authority(shared).trusting()
    weak.maximum_version = ssl.TLSVersion.TLSv1_2
    weak.set_ciphers("AES128-SHA:AES256-SHA256:@SECLEVEL=0")
    for context in (old, weak):
        with pytest.raises(httpx.ConnectError):
            get(shared, context)
    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        today = authority(shared).trusting()
        today.minimum_version = today.maximum_version = version
        assert get(shared, today).status_code == 200


def test_in_the_clear_nothing_is_answered(shared: Appliance) -> None:
    with pytest.raises(httpx.TransportError):
        get(shared, authority(shared).trusting(), shared.url.replace("https", "http"))


@pytest.mark.thorough
def test_with_a_ca_for_clients_a_token_alone_opens_nothing(made: Appliance, tmp_path: Path) -> None:
    made.environment["APPLIANCE_CLIENT_CA"] = str(authority(made).file)
    made.start()
    own = authority(made).issue("unit-host", client=True)
    assert get(made, authority(made).trusting(own)).status_code == 200
    outsider = Authority(tmp_path / "other").issue("unit-host", client=True)
    for context in (authority(made).trusting(), authority(made).trusting(outsider)):
        with pytest.raises(httpx.TransportError):
            get(made, context)
    with httpx.Client(verify=authority(made).trusting(own), timeout=90) as client:
        assert client.get(f"{made.url}/v1/models").status_code == 401


def _broken_key(site: Appliance) -> None:
    Path(site.environment["APPLIANCE_CERTIFICATE_KEY"]).write_bytes(b"no key")


def _open_key(site: Appliance) -> None:
    Path(site.environment["APPLIANCE_CERTIFICATE_KEY"]).chmod(0o640)


def _anothers_key(site: Appliance) -> None:
    site.environment["APPLIANCE_CERTIFICATE_KEY"] = str(authority(site).issue("another").key)


def _no_key(site: Appliance) -> None:
    del site.environment["APPLIANCE_CERTIFICATE_KEY"]


def _lost_key(site: Appliance) -> None:
    Path(site.environment["APPLIANCE_CERTIFICATE_KEY"]).unlink()


def _ended(site: Appliance) -> None:
    files = authority(site).issue("ended", days=-1)
    site.environment |= {"APPLIANCE_CERTIFICATE": str(files.chain), "APPLIANCE_CERTIFICATE_KEY": str(files.key)}


def _open_in_the_clear(site: Appliance) -> None:
    for name in ("APPLIANCE_CERTIFICATE", "APPLIANCE_CERTIFICATE_KEY"):
        del site.environment[name]
    site.environment["APPLIANCE_LISTEN"] = "0.0.0.0:0"


@pytest.mark.parametrize(
    ("spoiled", "code", "words"),
    [
        (_broken_key, 2, "expected PEM files that fit together"),
        (_open_key, 3, "mode 0600 or 0400, got mode 0640"),
        (_anothers_key, 2, "expected PEM files that fit together"),
        (_no_key, 2, "expected certificate and certificate_key"),
        (_lost_key, 2, "expected a file"),
        (_ended, 2, "Have your CA issue a new one"),
        (_open_in_the_clear, 2, "on a network, without TLS"),
    ],
)
def test_what_would_not_be_private_does_not_start(made: Appliance, spoiled: Any, code: int, words: str) -> None:
    socket = made.settings.socket
    spoiled(made)
    made.start(wait=False)
    service, made.service = made.service, None
    assert service is not None
    assert service.wait(60) == code
    assert words in made.log()
    assert not socket.exists()
