"""Addresses of the manual's pages and sections: at the console, and as files of this machine.

scripts/docs builds the pages from docs/. tests/test_manual.py compares the addresses with the built pages.
"""

from __future__ import annotations

from pathlib import Path

PREFIX = "/docs/"
"""Prefix of all addresses of the manual."""

_PACKAGE = Path(__file__).resolve().parent


def address_of(place: str) -> str:
    """Return the address of a page or section, such as `guides/console/#passkeys`."""
    return f"{PREFIX}{place}"


def address_of_error(code: str) -> str:
    """Return the address of an error code."""
    return address_of(f"reference/errors/#{code}")


def address_of_refusal(code: str) -> str:
    """Return the address of the code of a refusal."""
    return address_of(f"reference/refusals/#{code}")


def locate(address: str, package: Path = _PACKAGE) -> str:
    """Return where a person without a console finds a page or section that has this address.

    This is the URL of the built page in an installed package, or the page's source in a checkout. A zipapp has neither,
    so the result is then the address at the console.
    """
    page, _, anchor = address.removeprefix(PREFIX).partition("#")
    name = page.strip("/")
    built = package / "manual" / name / "index.html"
    if built.is_file():
        return f"{built.as_uri()}{anchor and '#'}{anchor}"
    docs = package.parent / "docs"
    for source in (docs / name / "index.md", docs / f"{name}.md"):
        if source.is_file():
            return f"{source}{anchor and f' (section {anchor})'}"
    return f"{address}, at the console"
