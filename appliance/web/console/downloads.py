"""Files to keep: the whole log, and a document of an entry."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from appliance.errors import NotFound
from appliance.web.console.core.desk import Desk
from appliance.web.console.core.page import PEOPLE
from appliance.workflows.queries import log


def download_routes(desk: Desk) -> list[Route]:
    def export(request: Request) -> Response:
        desk.check(request, "export of the log", PEOPLE)
        size = desk.context.ledger.state.size
        return StreamingResponse(
            log.export(desk.context), media_type="application/x-tar", headers=desk.named(f"ledger-{size}.tar")
        )

    def document(request: Request) -> Response:
        desk.check(request, "document of an entry", PEOPLE)
        index, role = desk.entry(request), request.path_params["role"]
        documents = desk.context.ledger.documents_of(index)
        if role not in documents:
            raise NotFound(f"entry {index}, document: expected {' or '.join(documents) or 'none'}, got {role:.40}")
        return Response(
            documents[role], media_type="application/octet-stream", headers=desk.named(f"entry-{index}-{role}")
        )

    return [Route("/exports/ledger.tar", export), Route("/log/{index}/documents/{role}", document)]
