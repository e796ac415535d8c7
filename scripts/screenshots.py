"""Writes a picture of every page of the console, from the demo's data: desktop and phone width, light and dark.

Needs Debian's chromium and playwright (scripts/setup --browser), and a demo that has run (scripts/demo).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page, sync_playwright

ROOT = Path(__file__).resolve().parent.parent
PLACE = Path(os.environ.get("APPLIANCE_DEMO") or ROOT / ".demo").absolute()
WIDTHS = {"desktop": (1280, 860), "phone": (360, 780)}
PAGES = (
    ("rita", "home", "/home"),
    ("rita", "reviews", "/reviews?everyone=true"),
    ("rita", "adapters", "/adapters"),
    ("rita", "adapter", "/adapters/clauses@1"),
    ("rita", "adapter-quality", "/adapters/clauses@1?tab=quality"),
    ("rita", "adapter-changes", "/adapters/clauses@1?tab=changes"),
    ("rita", "adapter-data", "/adapters/clauses@1?tab=data"),
    ("rita", "adapter-signature", "/adapters/clauses@1?tab=signature"),
    ("rita", "adapter-findings", "/adapters/clauses@1?tab=findings"),
    ("rita", "adapter-history", "/adapters/clauses@1?tab=history"),
    ("lou", "candidates", "/candidates"),
    ("lou", "releases", "/releases"),
    ("lou", "release", "/releases/legal/labels"),
    ("legal", "home-of-a-unit", "/home"),
    ("legal", "release-of-a-unit", "/releases/legal/labels"),
    ("legal", "ask", "/ask"),
    ("legal", "answer", "/ask"),
    ("legal", "requests", "/requests"),
    ("legal", "usage", "/usage"),
    ("legal", "passkeys-of-a-unit", "/passkeys"),
    ("olga", "runs", "/runs"),
    ("olga", "run", "/runs/r-000001"),
    ("olga", "compare", "/compare?run=r-000001"),
    ("olga", "sweeps", "/sweeps"),
    ("olga", "start-sweep", "/start-sweep"),
    ("olga", "data", "/data"),
    ("olga", "dataset", "/datasets/clauses@1"),
    ("olga", "imports", "/imports"),
    ("axel", "log", "/log"),
    ("axel", "log-denied", "/log?outcome=denied"),
    ("axel", "entry", "/log/0"),
    ("axel", "past", "/past?kind=principal"),
    ("axel", "effective-access", "/effective-access?unit=legal"),
    ("axel", "checkpoint", "/checkpoint"),
    ("olga", "orders-to-sign", "/sign"),
    ("olga", "order-a-run", "/sign/train"),
    ("rita", "decide", "/sign/review?given=adapter:clauses@1&given=unit:legal"),
    ("rita", "passkeys", "/passkeys"),
    ("rita", "new-passkey", "/passkeys/new"),
    ("rita", "sessions", "/sessions"),
    ("olga", "order-an-import", "/sign/import-dataset"),
    ("anna", "order-a-policy", "/sign/adopt-policy"),
    ("anna", "home-of-an-administrator", "/home"),
    ("olga", "home-of-an-operator", "/home"),
    ("anna", "people", "/people"),
    ("anna", "person", "/people/rita"),
    ("anna", "orders", "/orders"),
    ("anna", "policy", "/policy"),
    ("anna", "health", "/health"),
    ("anna", "storage", "/health?tab=storage"),
    ("anna", "checks", "/health?tab=checks"),
    ("legal", "refused", "/log"),
    ("rita", "refused-to-adopt", "/sign/adopt-policy"),
    ("axel", "not-found", "/runs/r-999999"),
    ("", "sign-in", "/sign-in"),
    ("", "help-with-passkeys", "/help/passkeys"),
)
"""Pictures: (person, name of the picture, address)."""
DOCS = (
    ("olga", "run", "/runs/r-000001"),
    ("rita", "adapter", "/adapters/clauses@1"),
    ("axel", "entry", "/log?type=review.recorded"),
    ("axel", "evaluated", "/adapters/clauses@1?tab=quality"),
    ("lou", "release", "/releases/legal/labels"),
    ("legal", "answer", "/ask"),
    ("anna", "people", "/people"),
    ("anna", "health", "/health"),
)
"""Pictures of docs/pictures, one for each audience; the first three are in README.md, too."""
CLAUSE = "Each party is excused from performance for as long as an earthquake, a flood or a war prevents it."


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Service:
    """The demo's own appliance, with a console."""

    def __init__(self, home: Path) -> None:
        self.port = free_port()
        kept = {name: value for name, value in os.environ.items() if not name.startswith("APPLIANCE_")}
        own = {"APPLIANCE_HOME": str(home), "APPLIANCE_LISTEN": "off", "APPLIANCE_CONSOLE": f"127.0.0.1:{self.port}"}
        self._environment = {**kept, **own}

    @property
    def url(self) -> str:
        return f"http://localhost:{self.port}"

    @contextmanager
    def running(self) -> Iterator[None]:
        process = subprocess.Popen([sys.executable, "-m", "appliance", "serve"], env=self._environment, cwd=ROOT)
        try:
            deadline = time.monotonic() + 120
            while socket.socket().connect_ex(("127.0.0.1", self.port)):
                if time.monotonic() > deadline or process.poll() is not None:
                    sys.exit("screenshots: expected the service to start, it did not")
                time.sleep(0.2)
            yield
        finally:
            process.terminate()
            process.wait(60)

    def link(self, name: str) -> str:
        people = PLACE / "people"
        words = ("--as", name, "--key", str(people / f"{name}.key"), "--passphrase-file", str(people / f"{name}.pass"))
        done = subprocess.run(
            [sys.executable, "-m", "appliance", "console", "--json", *words],
            env=self._environment, cwd=ROOT, capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            sys.exit(f"screenshots: expected a link for {name}, got: {done.stderr}")
        return str(json.loads(done.stdout)["url"])


def sign_in(page: Page, link: str) -> None:
    # The first answer waits until the engine has loaded the base.
    page.set_default_timeout(300_000)
    page.goto(link)
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_url("**/home")


def shoot(browser: Browser, service: Service, folder: Path, wanted: set[str]) -> None:
    for name in dict.fromkeys(who for who, picture, _ in PAGES if not wanted or picture in wanted):
        context = browser.new_context(reduced_motion="reduce")
        page = context.new_page()
        if name:
            sign_in(page, service.link(name))
        for who, picture, path in PAGES:
            if who == name and (not wanted or picture in wanted):
                _shoot_page(page, f"{service.url}{path}", folder / picture)
        context.close()


def _shoot_page(page: Page, url: str, file: Path) -> None:
    for width, (columns, rows) in WIDTHS.items():
        for scheme in ("light", "dark"):
            page.set_viewport_size({"width": columns, "height": rows})
            page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
            _open(page, file.name, url)
            page.screenshot(path=f"{file}-{width}-{scheme}.png", full_page=True)


def _open(page: Page, picture: str, url: str) -> None:
    page.goto(url, wait_until="load")
    if picture == "answer":
        page.get_by_label("your text").fill(CLAUSE)
        page.get_by_role("button", name="Ask").click()
        page.get_by_role("heading", name="The proof of it").wait_for(timeout=120_000)
    if "type=review.recorded" in url:
        page.locator("#found tbody a").first.click()
        page.wait_for_url("**/log/*")
    page.wait_for_timeout(700 if "/runs" in url or "/compare" in url else 60)


def shoot_docs(browser: Browser, service: Service, folder: Path, wanted: set[str]) -> None:
    """Take the pictures of the documentation: as much of each page as a window shows."""
    for name, picture, path in DOCS:
        if wanted and picture not in wanted:
            continue
        context = browser.new_context(viewport={"width": 1180, "height": 820}, reduced_motion="reduce")
        page = context.new_page()
        sign_in(page, service.link(name))
        _open(page, picture, f"{service.url}{path}")
        page.screenshot(path=f"{folder / picture}.png")
        context.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pictures", nargs="*", help="only these; without any all of them")
    parser.add_argument("--folder", type=Path, default=ROOT / ".screenshots", help="where they are written")
    parser.add_argument("--docs", action="store_true", help="only those of the documentation, into docs/pictures")
    parser.add_argument("--chromium", default=shutil.which("chromium"), help="the browser's program")
    asked: Any = parser.parse_args()
    if asked.chromium is None:
        sys.exit("screenshots: expected chromium, got none (Debian: apt-get install chromium)")
    if not (PLACE / "home" / "trust.json").exists():
        sys.exit(f"screenshots: expected the demo's data in {PLACE}, got none; make it with: scripts/demo")
    asked.folder.mkdir(exist_ok=True)
    service = Service(PLACE / "home")
    with service.running(), sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=asked.chromium, args=["--no-sandbox"])
        if asked.docs:
            asked.folder = ROOT / "docs" / "pictures"
            asked.folder.mkdir(exist_ok=True)
            shoot_docs(browser, service, asked.folder, set(asked.pictures))
        else:
            shoot(browser, service, asked.folder, set(asked.pictures))
        browser.close()
    print(f"{len(list(asked.folder.glob('*.png')))} pictures in {asked.folder}")


if __name__ == "__main__":
    main()
