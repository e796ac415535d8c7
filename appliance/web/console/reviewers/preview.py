"""A reviewer's sample view or trial: a page that waits for the answers, and the one response that contains them."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from appliance.errors import NotFound
from appliance.formats.core.digest import parse_digest
from appliance.web.console.core.desk import Desk
from appliance.web.core.receiving import Delivery
from appliance.workflows.core.prompts import ANSWERS_KEPT_S, Answers
from appliance.workflows.serving.previews import deliver_answers, preview_status


def preview_routes(desk: Desk) -> list[Route]:
    """Return the routes of a sample view or trial.

    GET shows its progress. Only POST, with the session's own form, returns the answers.
    """

    def show(request: Request) -> Response:
        viewer, order = desk.viewer(request), parse_digest(request.path_params["order"])
        try:
            status = preview_status(desk.context, viewer.name, order)
        except NotFound:
            status = None
        return desk.render_page(
            request,
            viewer,
            "reviewers/preview.html",
            status=404 if status is None else 200,
            state=status,
            minutes=round(ANSWERS_KEPT_S / 60),
        )

    def deliver(request: Request, fields: Mapping[str, str]) -> Response:
        viewer, order = desk.viewer(request), parse_digest(request.path_params["order"])

        def render(answers: Answers) -> bytes:
            page = desk.render_page(
                request,
                viewer,
                "reviewers/answers.html",
                preview=answers.preview,
                result=answers.result,
                prompts=[one.text for one in answers.prompts],
                keys=_keys_file(answers),
            )
            return bytes(page.body)

        body, record = deliver_answers(desk.context, viewer.name, order, render)
        return Delivery(body, "text/html", record)

    return [Route("/previews/{order}", show), Route("/previews/{order}", desk.posted(deliver), methods=["POST"])]


def _keys_file(answers: Answers) -> str:
    """Return a trial as the command line prints it with --json, as a `data:` address."""
    found: dict[str, Any] = {**answers.result, "entry": answers.preview.index}
    if answers.prompts:
        pairs = zip(found["answers"], answers.prompts, strict=True)
        found["answers"] = [{**one, "prompt": prompt.text, "prompt_salt": prompt.salt.hex()} for one, prompt in pairs]
    text = json.dumps(found, indent=1) + "\n"
    return f"data:application/json;charset=utf-8;base64,{b64encode(text.encode()).decode('ascii')}"
