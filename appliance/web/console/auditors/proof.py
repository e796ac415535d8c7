"""A proof of an entry as a file, and the page that checks it in the auditor's own browser, without the service."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from appliance.domain.queries.entry_proof import encode_entry_proof
from appliance.formats.core.digest import digest_bytes
from appliance.web.console.core.assets import STATIC
from appliance.web.console.core.desk import Desk
from appliance.web.console.core.page import EVERYBODY, PEOPLE
from appliance.workflows.queries import log

PROOF_PAGE = (STATIC / "proof.html").read_bytes()
PROOF_PAGE_DIGEST = digest_bytes(PROOF_PAGE)


def proof_routes(desk: Desk) -> list[Route]:
    def page(request: Request) -> Response:
        desk.check(request, "page that checks proofs", EVERYBODY)
        # Saved and never opened here: it is to run where the service cannot change it.
        return Response(PROOF_PAGE, media_type="application/octet-stream", headers=desk.named("proof.html"))

    def proof(request: Request) -> Response:
        desk.check(request, "proof of an entry", PEOPLE)
        index = desk.entry(request)
        data = encode_entry_proof(log.entry_proof(desk.context, index))
        return Response(data, media_type="application/json", headers=desk.named(f"entry-{index}-proof.json"))

    return [Route("/proof.html", page), Route("/log/{index}/proof", proof)]
