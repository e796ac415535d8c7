"""Every command that a page shows exists, with every option that the page gives it."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("README.md", "SECURITY.md", "docs/**/*.md", "examples/**/*.md", "offline_wheels/*.md", "policies/**/*.md")
PROGRAMS = ("appliance", "appliance-verify", "appliance-witness")
FENCE = re.compile(r"^```[a-z]*\n(?P<body>.*?)^```", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"(?<!`)`(?P<body>[^`\n]+)`(?!`)")
# Where a shell command ends: what follows is another command, a redirection or a comment.
END = re.compile(r"^(\||\|\||&&|&|;|[0-9]?>{1,2}|<|#.*)$")


@dataclass(frozen=True)
class Shown:
    """One command as a page shows it; `words` without the program's own name."""

    page: str
    program: str
    words: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.page}: {self.program} {' '.join(self.words)}"


def _words_of(line: str) -> list[str]:
    """Return a shell line's words up to its end. [Optional parts] lose their brackets, $(…) stays one word."""
    line = re.sub(r"\$\([^)]*\)", "SUBSTITUTED", line.strip().removeprefix("$ ").removeprefix("# "))
    try:
        words = shlex.split(re.sub(r"[\[\]]", " ", line), comments=True)
    except ValueError:  # a lone quote: prose, not a command
        words = line.split()
    while words and re.fullmatch(r"[A-Z_][A-Z0-9_]*=.*", words[0]):
        words.pop(0)  # NAME=value before the program
    end = next((i for i, word in enumerate(words) if END.match(word)), len(words))
    return words[:end]


def _program_of(words: list[str]) -> tuple[str, list[str]] | None:
    if words[1:3] == ["-m", "appliance"]:
        return "appliance", words[3:]
    words = words[1:] if words[:1] == ["python3"] else words
    name = words[0].rpartition("/")[2].removesuffix(".pyz") if words else ""
    return (name, words[1:]) if name in PROGRAMS else None


def commands_in(page: str, text: str) -> Iterator[Shown]:
    """From fenced blocks, line by line with continuations joined, and from `inline code`; a|b stands for both."""
    lines = [line for block in FENCE.finditer(text) for line in block["body"].replace("\\\n", " ").splitlines()]
    lines += [code["body"] for code in INLINE.finditer(FENCE.sub("", text))]
    for line in lines:
        if found := _program_of(_words_of(line)):
            program, words = found
            alternatives = [word.split("|") if re.fullmatch(r"[a-z|-]+", word) else [word] for word in words]
            for chosen in product(*alternatives):
                yield Shown(page, program, chosen)


def unknown_words(root: click.Group, words: tuple[str, ...]) -> str | None:
    """Return the error of a command line, or None: the group, the command and each --option must exist."""
    command: click.Command = root
    context = click.Context(root, info_name="appliance")
    options = _options_of(root, context)
    for word in words:
        if word in ("…", "..."):
            return None
        if word.startswith("-") and word != "-":
            if word.partition("=")[0] not in options:
                return f"{context.command_path}: no option {word}"
        elif isinstance(command, click.Group) and not _is_value(word):
            below = command.get_command(context, word)
            if below is None:
                return f"{context.command_path}: no command {word}"
            command, context = below, click.Context(below, info_name=word, parent=context)
            options |= _options_of(below, context)
    return None


def _is_value(word: str) -> bool:
    """COMMAND, <name> and /paths are values of an option or placeholders, never a command's name."""
    return re.fullmatch(r"[a-z][a-z0-9-]*", word) is None


def _options_of(command: click.Command, context: click.Context) -> set[str]:
    parameters = command.get_params(context)
    return {name for one in parameters for name in (*one.opts, *one.secondary_opts) if name.startswith("-")}


def shown_commands() -> list[Shown]:
    pages = sorted({path for pattern in PAGES for path in ROOT.glob(pattern)})
    shown = [
        one for page in pages for one in commands_in(str(page.relative_to(ROOT)), page.read_text(encoding="utf-8"))
    ]
    return list(dict.fromkeys(shown))


SHOWN = shown_commands()


@pytest.fixture(scope="module")
def cli() -> click.Group:
    if not (ROOT / "appliance/cli/main.py").exists():
        pytest.skip("appliance/cli/main.py is not written yet")
    from appliance.cli import main as module

    groups = [value for value in vars(module).values() if isinstance(value, click.Group)]
    assert groups, "appliance/cli/main.py: expected the click group that `main` runs"
    return groups[0]


@pytest.mark.parametrize("shown", [s for s in SHOWN if s.program == "appliance"], ids=str)
def test_a_documented_command_exists_and_answers_help(cli: click.Group, shown: Shown) -> None:
    assert unknown_words(cli, shown.words) is None
    path = _path_of(cli, shown.words)
    answer = CliRunner().invoke(cli, [*path, "--help"], prog_name="appliance")
    assert answer.exit_code == 0, answer.output
    assert answer.output.startswith("Usage: appliance"), answer.output


def _path_of(root: click.Group, words: tuple[str, ...]) -> list[str]:
    """Return the command's own names, without options and values."""
    command: click.Command = root
    context = click.Context(root)
    path: list[str] = []
    for word in words:
        below = command.get_command(context, word) if isinstance(command, click.Group) else None
        if below is not None:
            command, context = below, click.Context(below, parent=context)
            path.append(word)
    return path


MODULES = {"appliance-verify": "appliance.verifier", "appliance-witness": "appliance.witness"}


@pytest.mark.thorough
@pytest.mark.parametrize("shown", [s for s in SHOWN if s.program in MODULES], ids=str)
def test_a_documented_option_of_a_program_exists(shown: Shown) -> None:
    below = shown.words[:1] if shown.program == "appliance-witness" else ()
    printed = print_help(MODULES[shown.program], *below)
    for word in shown.words:
        if word.startswith("--"):
            assert word.partition("=")[0] in printed, f"{shown.program}: no option {word}"


@cache
def print_help(module: str, *words: str) -> str:
    command = [sys.executable, "-m", module, *words, "--help"]
    return subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout


@pytest.mark.parametrize(
    "page", sorted({path for pattern in PAGES for path in ROOT.glob(pattern)}), ids=lambda page: page.name
)
def test_a_documented_script_can_be_run(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    code = [m["body"] for m in FENCE.finditer(text)] + [m["body"] for m in INLINE.finditer(FENCE.sub("", text))]
    named = {name for body in code for name in re.findall(r"(?<![\w/.-])scripts/[a-z][a-z_]*(?:\.py)?", body)}
    for name in named:
        if (ROOT / name).is_dir():
            continue
        assert (ROOT / name).is_file(), f"{page.name} names {name}, which does not exist"
        assert (ROOT / name).stat().st_mode & 0o111, f"{name}: not executable"


# The checks themselves, on a small command line of their own.


@click.group()
@click.option("--home")
def sample(home: str | None) -> None:
    """Group the sample's commands."""


@sample.group()
def run() -> None:
    """Group the commands of runs."""


@run.command()
@click.argument("recipe")
@click.option("--follow/--no-follow", "-f")
def start(recipe: str, follow: bool) -> None:
    """Start."""


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("run start recipe.yaml --follow", None),
        ("--home /srv/a run start -f recipe.yaml", None),
        ("run start recipe.yaml --no-follow", None),
        ("run COMMAND --help", None),
        ("run begin recipe.yaml", "no command begin"),
        ("runs start", "no command runs"),
        ("run start recipe.yaml --watch", "no option --watch"),
        ("run --follow", "no option --follow"),
    ],
)
def test_a_wrong_command_is_found(line: str, problem: str | None) -> None:
    found = unknown_words(sample, tuple(line.split()))
    if problem is None:
        assert found is None
    else:
        assert found is not None and problem in found


def test_commands_are_read_from_blocks_and_from_inline_code() -> None:
    page = """
Text with `appliance run list|show` and `NOT appliance run`.

```sh
$ appliance run start recipe.yaml \\
    --follow   # and watch
APPLIANCE_HOME=/srv/a .venv/bin/appliance ledger log --json | jq .
python -m appliance serve
appliance-verify export.tar --trust trust.json > verdict
python3 dist/appliance-witness.pyz vkey w1.key
not appliance init
```
"""
    assert [f"{one.program} {' '.join(one.words)}" for one in commands_in("page", page)] == [
        "appliance run start recipe.yaml --follow",
        "appliance ledger log --json",
        "appliance serve",
        "appliance-verify export.tar --trust trust.json",
        "appliance-witness vkey w1.key",
        "appliance run list",
        "appliance run show",
    ]
