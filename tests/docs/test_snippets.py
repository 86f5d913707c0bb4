"""What the documentation shows is run: Python against a toy model, command lines against the command line's parser."""

from __future__ import annotations

import ast
import re
import runpy
import shlex
from pathlib import Path

import pytest
from docs.pages import EMBEDDED, ROOT, Page, pages, script

from almanac.cli.main import VERBS, application
from almanac.core.errors import NotFoundError
from almanac.files.hub import alias_path

PAGES = pages()
WITH_PYTHON = [name for name, page in PAGES.items() if page.blocks("python")]
PYTHON, SHELL = ("python",), ("sh", "shell", "bash", "console")
_ENDS = {"|", ">", ">>", "<", "&&", ";", "2>"}
_EXCERPT = re.compile(r"excerpt of (\S+\.py)")
_MENTION = re.compile(r"almanac ([a-z]+)\b(.*)")


def is_quick_with_the_embedded_model(page: Page) -> bool:
    """Whether a page loads the embedded model and neither trains nor builds with it, which would take minutes."""
    code = script(page.blocks(*PYTHON))
    return EMBEDDED in code and "finetune(" not in code and "build(" not in code


def run(page: Page, folder: Path) -> None:
    path = folder / (page.name.replace("/", "_") + ".py")
    path.write_text(script(page.blocks(*PYTHON)), encoding="utf-8")
    runpy.run_path(str(path))


@pytest.mark.parametrize("name", WITH_PYTHON)
def test_every_python_block_is_python(name: str) -> None:
    for block in PAGES[name].blocks(*PYTHON):
        ast.parse(block.code, filename=f"{name}:{block.line}")


@pytest.mark.usefixtures("toys_only")
@pytest.mark.parametrize("name", [name for name in WITH_PYTHON if script(PAGES[name].blocks(*PYTHON)).strip()])
def test_python_blocks_run(name: str, workplace: Path) -> None:
    run(PAGES[name], workplace.parent)


@pytest.mark.embedded
@pytest.mark.parametrize("name", [name for name in WITH_PYTHON if is_quick_with_the_embedded_model(PAGES[name])])
def test_python_blocks_run_with_the_embedded_model(name: str, workplace: Path) -> None:
    try:
        alias_path(EMBEDDED, download=False)
    except NotFoundError:
        pytest.skip(f"{EMBEDDED} is not in the cache (`almanac doctor --fetch {EMBEDDED}`)")
    run(PAGES[name], workplace.parent)


@pytest.mark.parametrize("name", WITH_PYTHON)
def test_excerpts_stand_in_their_file(name: str) -> None:
    for block in PAGES[name].blocks(*PYTHON):
        if match := _EXCERPT.fullmatch(block.not_run):
            lines = [line.strip() for line in (ROOT / match[1]).read_text(encoding="utf-8").splitlines()]
            wanted = [line.strip() for line in block.code.splitlines()]
            places = range(len(lines) - len(wanted) + 1)
            assert any(lines[at : at + len(wanted)] == wanted for at in places), f"{name}:{block.line} is not in it"


def commands(page: Page) -> list[str]:
    """The command lines of the shell blocks, continuation lines joined, prompts and comments taken off."""
    found: list[str] = []
    for block in page.blocks(*SHELL):
        for line in block.code.replace("\\\n", " ").splitlines():
            line = line.strip().removeprefix("$ ")
            if line and not line.startswith("#"):
                found.append(line)
    return found


def almanac_words(command: str) -> list[str] | None:
    """The words after ``almanac`` up to a pipe or a redirection; None for a line that does not call it."""
    words = shlex.split(command, comments=True)
    if "almanac" not in words:
        return None
    words = words[words.index("almanac") + 1 :]
    end = next((index for index, word in enumerate(words) if word in _ENDS), len(words))
    return words[:end]


@pytest.mark.parametrize("name", [name for name in PAGES if name != "docs/cli.md" and commands(PAGES[name])])
def test_every_command_line_parses(name: str) -> None:
    app = application(summaries=False)
    for command in commands(PAGES[name]):
        words = almanac_words(command)
        if words is not None and words[:1] != ["--help"]:
            assert words and words[0] in VERBS, f"{name}: no verb in {command!r}"
            app.parse_args([word for word in words if word != "-"], print_error=False, exit_on_error=False)


def test_every_make_target_exists() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))
    for name, page in PAGES.items():
        lines = [*commands(page), *(span for span in page.spans() if span.startswith("make "))]
        named = {word for line in lines if line.startswith("make ") for word in shlex.split(line, comments=True)[1:]}
        assert named <= targets, f"{name}: make has no {sorted(named - targets)}"


@pytest.mark.parametrize("name", list(PAGES))
def test_verbs_and_options_in_the_prose_exist(name: str) -> None:
    app = application(summaries=False)
    for span in PAGES[name].spans():
        if (mention := _MENTION.fullmatch(span)) is None:
            continue
        assert mention[1] in VERBS, f"{name}: `{span}` names no verb"
        known = {option for argument in app[mention[1]].assemble_argument_collection() for option in argument.names}
        named = set(re.findall(r"(?<!\S)--[a-z-]+", mention[2]))
        assert named <= known | {"--help", "--debug"}, f"{name}: `{span}` has an option that does not exist"
