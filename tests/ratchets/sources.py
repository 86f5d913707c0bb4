"""What the ratchets look at: every file of the repository that is not ignored, and Python files parsed once."""

from __future__ import annotations

import ast
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "almanac"
CODE_FOLDERS = ("src", "tests", "benchmarks", "recipes")
OWN_FOLDER = "tests/ratchets"  # names what it forbids


@dataclass(frozen=True)
class Source:
    """One Python file."""

    path: str  # relative to the repository, with slashes
    text: str
    tree: ast.Module

    @property
    def is_test(self) -> bool:
        return self.path.startswith("tests/")

    @property
    def lines(self) -> int:
        return len(self.text.splitlines())


@cache
def repository_files() -> tuple[str, ...]:
    """Paths of all files that git has or would take; without git, all files of the code and documentation folders."""
    git = shutil.which("git")
    if git is not None and (ROOT / ".git").exists():
        listing = subprocess.run(
            [git, "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
            cwd=ROOT, capture_output=True, check=True, text=True,
        )  # fmt: skip
        found = {name for name in listing.stdout.split("\0") if name}
    else:
        found = {
            path.relative_to(ROOT).as_posix()
            for folder in (*CODE_FOLDERS, "docs")
            for path in (ROOT / folder).rglob("*")
            if "__pycache__" not in path.parts
        }
    return tuple(sorted(name for name in found if (ROOT / name).is_file()))


@cache
def sources() -> tuple[Source, ...]:
    """Every Python file under the code folders, the ratchets' own included."""
    found = []
    for name in repository_files():
        if name.endswith(".py") and name.startswith(tuple(f"{folder}/" for folder in CODE_FOLDERS)):
            text = (ROOT / name).read_text(encoding="utf-8")
            found.append(Source(name, text, ast.parse(text, name)))
    return tuple(found)


def package_sources() -> tuple[Source, ...]:
    """The files of the package itself."""
    return tuple(source for source in sources() if source.path.startswith("src/almanac/"))


def checked_sources() -> tuple[Source, ...]:
    """Everything but the ratchets themselves, which have to name what they forbid."""
    return tuple(source for source in sources() if not source.path.startswith(f"{OWN_FOLDER}/"))


def module_of(source: Source) -> str:
    """``src/almanac/core/site.py`` -> ``almanac.core.site``; a package's ``__init__`` is the package."""
    name = source.path.removeprefix("src/").removesuffix(".py").replace("/", ".")
    return name.removesuffix(".__init__")


def functions(source: Source) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Every function and method of a file, nested ones too."""
    for node in ast.walk(source.tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def report(problems: list[str]) -> None:
    """Fails with all problems at once, one per line."""
    assert not problems, "\n".join(["", *problems])
