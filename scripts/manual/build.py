"""Build the manual, or measure how well its pages read (scripts/docs)."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from mkdocs.commands.build import build
from mkdocs.config import load_config
from mkdocs.exceptions import MkDocsException

from scripts.manual.readability import report_pages

ROOT = Path(__file__).resolve().parents[2]


def build_manual(output: Path) -> None:
    """Build the manual into a folder.

    Raises: MkDocsException for a broken link, a missing anchor or a page without a place.
    """
    build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(output)))


def main() -> int:
    """Run the command line and return the exit code."""
    parser = argparse.ArgumentParser(prog="scripts/docs", description="Build the manual, or measure its pages.")
    parser.add_argument("--output", type=Path, default=ROOT / "manual", help="folder that the manual is written to")
    parser.add_argument("--lint", action="store_true", help="measure Start, Concepts and Tutorials, and build nothing")
    chosen = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="docs: %(message)s")
    if chosen.lint:
        return report_pages(ROOT / "docs")
    try:
        build_manual(chosen.output)
    except MkDocsException as error:
        print(f"docs: error: {error}", file=sys.stderr)
        return 2
    print(f"docs: {sum(1 for _ in chosen.output.rglob('*.html'))} pages in {chosen.output}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
