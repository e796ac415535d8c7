"""MkDocs' hooks of the manual: pages from outside `docs`, links between pages, and files that the theme shares."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath
from posixpath import normpath, relpath
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]

PAGES = {
    "CONTRIBUTING.md": "contributing/index.md",
    "SECURITY.md": "security/promises.md",
    "CHANGELOG.md": "upgrade/changelog.md",
    "offline_wheels/README.md": "operations/install.md",
}
"""Pages that lie outside `docs`, where people and tools expect them, and their place in the manual."""

SHARED = {
    "appliance/reports/pages.css": "assets/pages.css",
    "appliance/web/console/static/icon.svg": "assets/icon.svg",
}
"""Files of the console that the manual has, too, and their place in it."""

_SOURCES = {place: source for source, place in PAGES.items()}
_LINK = re.compile(r"(?<!!)\[(?P<label>[^\]]*)\]\((?P<target>[^)\s]+)\)")
_CODE = re.compile(r"^( *)```.*?^\1```$|``.+?``|`[^`\n]+`(?!\])", re.MULTILINE | re.DOTALL)
_FILE_NAME = re.compile(r"`?[\w./-]+\.md`?")
_FOLDER_LINK = re.compile(r'(?P<begin><a\b[^>]*?\bhref=")(?P<folder>(?:[^":#?/][^":#?]*/)?(?:\.{1,2})?)(?P<end>["#])')


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages from outside `docs`, and the shared files."""
    for source, place in PAGES.items():
        files.append(File.generated(config, place, content=(ROOT / source).read_text(encoding="utf-8")))
    for source, place in SHARED.items():
        files.append(File.generated(config, place, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Make the links of a page into links of the manual. A link's text that is a file's name becomes the page's title.

    A link to a file that is not part of the manual becomes the file's name.
    """
    place = page.file.src_uri
    source = PurePosixPath(_SOURCES.get(place, f"docs/{place}"))

    def rewrite(link: re.Match[str]) -> str:
        path, mark, anchor = link["target"].partition("#")
        if "://" in path or not path:
            return link[0]
        target = normpath(str(source.parent / path))
        found = find_place(target)
        if found is None:
            return f"{link['label']} (`{target}`)" if (ROOT / target).exists() else link[0]
        label = read_title(target) if _FILE_NAME.fullmatch(link["label"]) else link["label"]
        return f"[{label}]({relpath(found, str(PurePosixPath(place).parent))}{mark}{anchor})"

    kept: list[str] = []

    def put_aside(code: re.Match[str]) -> str:
        kept.append(code[0])
        return f"\x02{len(kept) - 1}\x03"

    text = _LINK.sub(rewrite, _CODE.sub(put_aside, markdown))
    return re.sub(r"\x02(\d+)\x03", lambda code: kept[int(code[1])], text)


def find_place(target: str) -> str | None:
    """Return the place in the manual of a file or folder of the repository, or None if it has none."""
    if target in PAGES:
        return PAGES[target]
    if not target.startswith("docs/"):
        return None
    inside = target.removeprefix("docs/")
    return f"{inside}/index.md" if (ROOT / target).is_dir() else inside


def read_title(target: str) -> str:
    """Return the first heading of a page."""
    path = ROOT / target
    text = (path / "index.md" if path.is_dir() else path).read_text(encoding="utf-8")
    return text.partition("# ")[2].partition("\n")[0]


def on_page_content(html: str, **_: Any) -> str:
    """Let a wide table scroll in a frame of its own."""
    table = html.replace("<table>", '<div class="scroll" tabindex="0"><table class="rows">')
    return table.replace("</table>", "</table></div>")


def on_post_page(output: str, **_: Any) -> str:
    """Let links between pages name the page's file, since a browser that opened a page as a file lists a folder."""
    return _FOLDER_LINK.sub(_name_file, output)


def _name_file(link: re.Match[str]) -> str:
    folder = link["folder"]
    if not folder:  # a section of the same page
        return link[0]
    return f"{link['begin']}{folder.rstrip('/')}/index.html{link['end']}"


def on_post_build(config: MkDocsConfig) -> None:
    """Remove what MkDocs writes for public sites."""
    for name in ("sitemap.xml", "sitemap.xml.gz"):
        (Path(config.site_dir) / name).unlink(missing_ok=True)
