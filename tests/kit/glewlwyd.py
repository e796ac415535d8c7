"""A real identity provider: Debian's glewlwyd on loopback, with a database and a key of the test's own."""

from __future__ import annotations

import base64
import json
import re
import shutil
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from joserfc.jwk import ECKey

from appliance.domain.core.identity import IdentityKey, IdentityProvider
from scripts.kit.ports import free_port
from tests.kit.identity_provider import CLIENT

PROGRAM = shutil.which("glewlwyd")
PAGES = Path("/usr/share/glewlwyd/webapp")
TABLES = Path("/usr/share/dbconfig-common/data/glewlwyd/install/sqlite3")
PASSWORD = "correct horse battery"
WAIT_S = 120.0
"""Seconds for a start or a response of the provider."""
_SETTINGS = """
port = {port}
bind_address = "127.0.0.1"
external_url = "{url}"
login_url = "login.html"
api_prefix = "api"
static_files_path = "{pages}/"
log_mode = "console"
log_level = "ERROR"
cookie_domain = "127.0.0.1"
cookie_secure = 0
admin_scope = "g_admin"
profile_scope = "g_profile"
user_module_path = "/usr/lib/glewlwyd/user"
client_module_path = "/usr/lib/glewlwyd/client"
user_auth_scheme_module_path = "/usr/lib/glewlwyd/scheme"
plugin_module_path = "/usr/lib/glewlwyd/plugin"
hash_algorithm = "SHA512"
database = {{ type = "sqlite3"; path = "{database}"; }};
static_files_mime_types = (
  {{ extension = ".html"; mime_type = "text/html"; }},
  {{ extension = ".js"; mime_type = "application/javascript"; }},
  {{ extension = ".css"; mime_type = "text/css"; }},
  {{ extension = ".json"; mime_type = "application/json"; }}
)
"""
_PLUGIN: dict[str, Any] = {
    **{f"auth-type-{kind}-enabled": False for kind in ("code", "token", "password", "client", "refresh", "device")},
    **{"auth-type-id-token-enabled": True, "subject-type": "public", "jwks-show": True, "allow-non-oidc": False},
    **{
        "access-token-duration": 300,
        "refresh-token-duration": 300,
        "code-duration": 60,
        "refresh-token-rolling": False,
    },
    **{"scope": [], "name-claim": "no", "email-claim": "no"},
}


@dataclass
class Glewlwyd:
    """The provider with one client. Its address is of another site than the console's `localhost`."""

    url: str
    admin: httpx.Client
    redirect_uri: str

    @property
    def pinned(self) -> IdentityProvider:
        """Return it as an administrator pins it, from its metadata and keys."""
        metadata = self.admin.get("/api/oidc/.well-known/openid-configuration").json()
        jwks = httpx.get(metadata["jwks_uri"], timeout=WAIT_S).json()
        return IdentityProvider(
            issuer=metadata["issuer"],
            client_id=CLIENT,
            authorization_endpoint=metadata["authorization_endpoint"],
            algorithms=("ES256",),
            keys=tuple(IdentityKey(**key) for key in jwks["keys"]),
        )

    def add(self, name: str) -> str:
        """Add a person, who lets the console know them. Return the subject that this client sees."""
        self._send("POST", "user/", self._user(name, enabled=True))
        with httpx.Client(base_url=self.url, timeout=WAIT_S) as http:
            http.post("/api/auth/", json={"username": name, "password": PASSWORD}).raise_for_status()
            http.put(f"/api/auth/grant/{CLIENT}", json={"scope": "openid"}).raise_for_status()
            asked = {"response_type": "id_token", "response_mode": "form_post", "scope": "openid", "nonce": "n"}
            asked |= {"client_id": CLIENT, "redirect_uri": self.redirect_uri, "g_continue": ""}
            text = http.get("/api/oidc/auth", params=asked).text
        found = re.search(r'name="id_token" value="[\w-]+\.([\w-]+)\.', text)
        assert found is not None, text
        return str(json.loads(base64.urlsafe_b64decode(found[1] + "=="))["sub"])

    def lock(self, name: str) -> None:
        """Lock a person's account, as a directory does when somebody leaves."""
        self._send("PUT", f"user/{name}", self._user(name, enabled=False))

    def _user(self, name: str, *, enabled: bool) -> dict[str, Any]:
        email = f"{name}@bank.example"
        base = {"username": name, "name": name.title(), "email": email, "enabled": enabled}
        return {**base, "password": PASSWORD, "scope": ["openid", "g_profile"]}

    def _send(self, method: str, path: str, value: dict[str, Any]) -> None:
        self.admin.request(method, f"/api/{path}", json=value).raise_for_status()


@contextmanager
def glewlwyd(folder: Path, console: str) -> Iterator[Glewlwyd]:
    """Run the provider with the console as its client."""
    assert PROGRAM is not None, "expected Debian's package glewlwyd"
    port = free_port()
    url, database, settings = f"http://127.0.0.1:{port}", folder / "provider.db", folder / "provider.conf"
    with closing(sqlite3.connect(database)) as tables:
        tables.executescript(TABLES.read_text(encoding="utf-8"))
    # It serves no link out of its folder, and Debian's package has such links.
    pages = shutil.copytree(PAGES, folder / "pages", ignore=shutil.ignore_patterns("config.json"))
    own = {"GlewlwydUrl": f"{url}/", "lang": ["en"], "scheme": {"password": {"priority": 0}}}
    (pages / "config.json").write_text(json.dumps(own), encoding="utf-8")
    settings.write_text(_SETTINGS.format(port=port, url=url, database=database, pages=pages))
    process = subprocess.Popen([PROGRAM, "-c", str(settings)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        with httpx.Client(base_url=url, timeout=WAIT_S) as admin:
            _wait(admin)
            made = Glewlwyd(url, admin, f"{console}/sign-in/identity")
            admin.post("/api/auth/", json={"username": "admin", "password": "password"}).raise_for_status()
            key = ECKey.generate_key("P-256", {"kid": "g1", "alg": "ES256"})
            jwks = json.dumps({"keys": [key.as_dict(private=True)]})
            parameters = {**_PLUGIN, "iss": url, "jwks-private": jwks, "default-kid": "g1"}
            plugin = {"module": "oidc", "name": "oidc", "display_name": "oidc", "parameters": parameters}
            made._send("POST", "mod/plugin/", plugin)
            client = {"client_id": CLIENT, "name": "appliance", "confidential": False, "enabled": True, "scope": []}
            client |= {"redirect_uri": [made.redirect_uri], "authorization_type": ["id_token"]}
            made._send("POST", "client/", client)
            yield made
    finally:
        process.terminate()
        process.wait(60)


def _wait(http: httpx.Client) -> None:
    until = time.monotonic() + WAIT_S
    while True:
        try:
            http.get("/api/")
        except httpx.TransportError:
            assert time.monotonic() < until, f"expected glewlwyd to listen within {WAIT_S:.0f} s"
            time.sleep(0.05)
        else:
            return
