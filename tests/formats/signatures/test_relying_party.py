"""A passkey signs at exact origins of one domain, as browsers write them; no IP address is one."""

from __future__ import annotations

import pytest

from appliance.errors import BadInput
from appliance.formats.signatures.webauthn import MAX_ORIGINS, PasskeyScope, parse_origin, parse_rp_id


@pytest.mark.parametrize("text", ["bank.example", "a.b-c.example", "appliance", "localhost", "xn--bcher-kva.example"])
def test_a_domain_is_a_relying_party(text: str) -> None:
    assert parse_rp_id(text) == text


@pytest.mark.parametrize(
    "text",
    [
        *("", ".", "bank.example.", ".bank.example", "bank..example", "-bank.example", "bank-.example"),
        *("127.0.0.1", "10.1", "2130706433", "0x7f.1", "0x7f000001", "::1", "[::1]", "1.2.3.0x4"),
        *("Bank.example", "bücher.example", "bank.example:8330", "https://bank.example", "bank example"),
        f"{'a' * 64}.example",
        f"{'a.' * 130}example",
    ],
)
def test_an_address_and_another_spelling_are_no_relying_party(text: str) -> None:
    with pytest.raises(BadInput, match="rp id: expected a domain name in lower case, no IP address"):
        parse_rp_id(text)


@pytest.mark.parametrize(
    ("text", "rp_id"),
    [
        ("https://bank.example", "bank.example"),
        ("https://bank.example:8330", "bank.example"),
        ("https://console.bank.example", "bank.example"),
        ("https://appliance:8330", "appliance"),
        ("http://localhost:8330", "localhost"),
        ("http://localhost:443", "localhost"),
        ("https://localhost:8330", "localhost"),
    ],
)
def test_an_origin_is_https_of_the_domain_or_http_of_localhost(text: str, rp_id: str) -> None:
    assert parse_origin(text, rp_id) == text


@pytest.mark.parametrize(
    "text",
    [
        *("bank.example", "http://bank.example", "https://evil.example", "https://evilbank.example"),
        *("https://bank.example/", "https://bank.example:443", "https://bank.example:0", "https://bank.example:08330"),
        *("https://bank.example:65536", "https://bank.example:", "https://bank.example:x", "HTTPS://bank.example"),
        *("https://user@bank.example", "https://bank.example.", "https://.bank.example", "https://1.2.3.4", "null"),
        *("https://[::1]", "http://localhost:8330", "https://bank.example\n", "https://BANK.example"),
    ],
)
def test_no_other_text_is_an_origin(text: str) -> None:
    with pytest.raises(BadInput, match="passkey, origin: expected"):
        parse_origin(text, "bank.example")


@pytest.mark.parametrize("text", ["http://localhost:80", "http://x.localhost", "https://x.localhost:443"])
def test_localhost_has_one_spelling_too(text: str) -> None:
    with pytest.raises(BadInput, match="passkey, origin: expected"):
        parse_origin(text, "localhost")


@pytest.mark.parametrize(
    "origins",
    [
        (),
        ("https://b.example", "https://a.b.example"),
        ("https://b.example", "https://b.example"),
        tuple(f"https://b.example:{port}" for port in range(8330, 8331 + MAX_ORIGINS)),
    ],
)
def test_origins_are_sorted_and_few(origins: tuple[str, ...]) -> None:
    with pytest.raises(BadInput, match="passkey, origins: expected"):
        PasskeyScope("b.example", origins, backup_eligible=False)


def test_every_user_of_a_machine_can_listen_on_its_localhost() -> None:
    assert PasskeyScope("localhost", ("http://localhost:8330",), backup_eligible=False).is_local
    assert PasskeyScope("app.localhost", ("https://app.localhost:8330",), backup_eligible=False).is_local
    assert not PasskeyScope("bank.example", ("https://bank.example",), backup_eligible=False).is_local
    assert not PasskeyScope("notlocalhost", ("https://notlocalhost",), backup_eligible=False).is_local
