"""Reads the metrics of the service on this machine from its operations listener."""

from __future__ import annotations

from pathlib import Path

from appliance.client.support.connection import Address
from appliance.errors import Unavailable

_TIMEOUT_S = 10.0
_LOCAL = {"0.0.0.0": "127.0.0.1", "::": "::1"}


def read_metrics(host: str, port: int, token: bytes, certificate: Path | None) -> str:
    """Return the metrics as text. The listener must show `certificate`, the service's own, if there is one.

    Raises: Unavailable if the listener does not respond with metrics.
    """
    import httpx

    place = Address(_LOCAL.get(host, host), port, certificate, is_pinned=True)
    try:
        verify = False if certificate is None else place.tls()
        with httpx.Client(verify=verify, timeout=_TIMEOUT_S, trust_env=False) as client:
            answer = client.get(
                f"{place.url}/metrics", headers={"Authorization": f"Bearer {token.decode('ascii', 'replace')}"}
            )
    except (httpx.HTTPError, OSError) as error:
        raise Unavailable(f"metrics, {place}: expected a response, got {error}") from None
    if answer.status_code != 200:
        raise Unavailable(f"metrics, {place}: expected metrics, got HTTP {answer.status_code}")
    return answer.text
