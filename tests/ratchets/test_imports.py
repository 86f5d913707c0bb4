"""The import law: every file imports only from its own floor's room and from the floors below."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator

import pytest
from ratchets.sources import Source, module_of, package_sources, report

FLOORS: tuple[frozenset[str], ...] = tuple(
    frozenset(names.split())
    for names in (
        "core",
        "files tokenizers data objectives",
        "nn",
        "models adapt compress interpret",
        "train generate",
        "verify",
        "language_model",
        "align reason evaluate retrieve learn trust",
        "agents curate pretrain",
        "assistant",
        "serve",
        "cli",
    )
)
"""From the ground up. Rooms of one floor do not import each other."""

CORE_ONLY = FLOORS[1]  # the four that stand on core alone
FROM_MODELS_UP = 3  # the lowest floor that may use those four
TOP = {"__init__", "__main__"}  # almanac's own lazy exports and the command


def floor_of(room: str) -> int:
    return next(index for index, rooms in enumerate(FLOORS) if room in rooms)


def imported(source: Source) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of everything a file imports, inside functions too, constant dynamic imports included."""
    package = module_of(source) if source.path.endswith("__init__.py") else module_of(source).rpartition(".")[0]
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            prefix = ""
            if node.level:
                prefix = ".".join(package.split(".")[: len(package.split(".")) - node.level + 1]) + "."
            module = prefix + (node.module or "")
            yield from ((node.lineno, f"{module}.{alias.name}".strip(".")) for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            yield from ((node.lineno, item.value) for item in node.args if _is_text(item))


def _is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def rooms_of(source: Source) -> tuple[str, list[tuple[int, str]]]:
    """The room a file is in, and the rooms of ours it imports from, with lines."""
    room = module_of(source).split(".")[1] if module_of(source) != "almanac" else "__init__"
    names = [(line, name.split(".")) for line, name in imported(source)]
    return room, [(line, parts[1]) for line, parts in names if parts[0] == "almanac" and len(parts) > 1]


def judge(room: str, other: str) -> str | None:
    """Why ``room`` must not import ``other``, or None."""
    if room == other or room in TOP or other == "__version__":
        return None
    if other == "evidence":
        return None if room == "cli" else "evidence is imported by the command line alone"
    if room == "evidence":
        return None
    if not any(other in rooms for rooms in FLOORS):
        return f"{other} has no floor"
    if room in CORE_ONLY:
        return None if other == "core" else f"{room} stands on core alone"
    here, there = floor_of(room), floor_of(other)
    if other in CORE_ONLY and here < FROM_MODELS_UP:
        return f"{other} is for models and what is above them"
    if here == there:
        return f"{room} and {other} are on one floor"
    return f"{other} is above {room}" if there > here else None


def test_every_room_has_a_floor() -> None:
    rooms = {rooms_of(source)[0] for source in package_sources()} - TOP - {"evidence"}
    assert rooms <= frozenset.union(*FLOORS)


def test_imports_point_down() -> None:
    problems = []
    for source in package_sources():
        room, others = rooms_of(source)
        for line, other in others:
            if (reason := judge(room, other)) is not None:
                problems.append(f"{source.path}:{line} imports {other}: {reason}")
    report(problems)


def test_the_core_needs_torch_and_nothing_else() -> None:
    allowed = {*sys.stdlib_module_names, "torch", "almanac"}
    problems = []
    for source in package_sources():
        if source.path.startswith("src/almanac/core/"):
            problems += [
                f"{source.path}:{line} imports {name}"
                for line, name in imported(source)
                if name.split(".")[0] not in allowed
            ]
    report(problems)


def test_tests_and_benchmarks_are_imported_by_nobody() -> None:
    foreign = {"tests", "benchmarks", "recipes", "toys", "pytest", "hypothesis"}
    problems = [
        f"{source.path}:{line} imports {name}"
        for source in package_sources()
        for line, name in imported(source)
        if name.split(".")[0] in foreign
    ]
    report(problems)


@pytest.mark.parametrize(
    ("room", "other", "fine"),
    [
        ("nn", "core", True),
        ("core", "nn", False),
        ("models", "nn", True),
        ("models", "files", True),
        ("adapt", "compress", False),
        ("adapt", "models", False),
        ("files", "core", True),
        ("files", "tokenizers", False),
        ("nn", "files", False),
        ("core", "files", False),
        ("train", "objectives", True),
        ("train", "generate", False),
        ("language_model", "verify", True),
        ("verify", "language_model", False),
        ("align", "language_model", True),
        ("align", "retrieve", False),
        ("assistant", "agents", True),
        ("cli", "evidence", True),
        ("assistant", "evidence", False),
        ("evidence", "cli", True),
        ("__init__", "cli", True),
        ("nn", "newroom", False),
    ],
)
def test_the_law_as_code(room: str, other: str, fine: bool) -> None:
    assert (judge(room, other) is None) == fine
