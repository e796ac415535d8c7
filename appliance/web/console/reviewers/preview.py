"""A reviewer's sample view or trial: a page that waits for the answers, and the one response that contains them."""

from __future__ import annotations

import json
from base64 import b64encode
from functools import partial
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from appliance.errors import NotFound
from appliance.formats.core.digest import parse_digest
from appliance.web.console.core.desk import Desk
from appliance.web.console.core.render import make_shell
from appliance.web.core.receiving import Delivery
from appliance.workflows.core.prompts import ANSWERS_KEPT_S, Answers
from appliance.workflows.serving.previews import deliver_answers, preview_status


def preview_routes(desk: Desk) -> list[Route]:
    """Return the routes of a sample view or trial.

    GET shows its progress. Only POST, with the session's own form, returns the answers.
    """
    page = _Preview(desk)
    return [Route("/previews/{order}", page.show), Route("/previews/{order}", page.take, methods=["POST"])]


class _Preview:
    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    def show(self, request: Request) -> Response:
        viewer, order = self._desk.viewer(request), parse_digest(request.path_params["order"])
        try:
            status = preview_status(self._desk.context, viewer.name, order)
        except NotFound:
            status = None
        return self._desk.render(
            "reviewers/preview.html",
            status=404 if status is None else 200,
            shell=make_shell(self._desk.context, viewer, self._desk.pages),
            path=request.url.path,
            state=status,
            minutes=round(ANSWERS_KEPT_S / 60),
        )

    async def take(self, request: Request) -> Response:
        await self._desk.form(request)
        return await run_in_threadpool(self._take, request)

    def _take(self, request: Request) -> Response:
        viewer, order = self._desk.viewer(request), parse_digest(request.path_params["order"])
        body, record = deliver_answers(self._desk.context, viewer.name, order, partial(self._render, request))
        return Delivery(body, "text/html", record)

    def _render(self, request: Request, answers: Answers) -> bytes:
        viewer = self._desk.viewer(request)
        page = self._desk.render(
            "reviewers/answers.html",
            shell=make_shell(self._desk.context, viewer, self._desk.pages),
            path=request.url.path,
            preview=answers.preview,
            result=answers.result,
            prompts=[one.text for one in answers.prompts],
            keys=_keys_file(answers),
        )
        return bytes(page.body)


def _keys_file(answers: Answers) -> str:
    """Return a trial as the command line prints it with --json, as a `data:` address."""
    found: dict[str, Any] = {**answers.result, "entry": answers.preview.index}
    if answers.prompts:
        pairs = zip(found["answers"], answers.prompts, strict=True)
        found["answers"] = [{**one, "prompt": prompt.text, "prompt_salt": prompt.salt.hex()} for one, prompt in pairs]
    text = json.dumps(found, indent=1) + "\n"
    return f"data:application/json;charset=utf-8;base64,{b64encode(text.encode()).decode('ascii')}"
