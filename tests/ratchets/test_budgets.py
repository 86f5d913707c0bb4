"""Budgets of size: a file, a function and a signature stay small enough to be read at one go."""

from __future__ import annotations

import ast

from ratchets.sources import functions, package_sources, report, sources

MAX_FILE, MAX_TEST_FILE, MAX_CORE = 400, 600, 1_200  # lines
MAX_FUNCTION = 60  # lines, signature and docstring included
MAX_PARAMETERS = 7  # self and cls not counted


def test_files_are_short() -> None:
    limits = [(source, MAX_TEST_FILE if source.is_test else MAX_FILE) for source in sources()]
    report([f"{source.path}: {source.lines} lines of {limit}" for source, limit in limits if source.lines > limit])


def test_the_core_is_small() -> None:
    sizes = {source.path: source.lines for source in package_sources() if source.path.startswith("src/almanac/core/")}
    assert sizes
    assert sum(sizes.values()) <= MAX_CORE, sizes


def test_functions_are_short() -> None:
    problems = []
    for source in sources():
        for node in functions(source):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if length > MAX_FUNCTION:
                problems.append(f"{source.path}:{node.lineno} {node.name}: {length} lines of {MAX_FUNCTION}")
    report(problems)


def test_signatures_are_short() -> None:
    problems = []
    for source in sources():
        for node in functions(source):
            if (count := parameters(node)) > MAX_PARAMETERS:
                problems.append(f"{source.path}:{node.lineno} {node.name}: {count} parameters of {MAX_PARAMETERS}")
    report(problems)


def parameters(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """How many a caller has to know of."""
    arguments = node.args
    named = [item.arg for item in (*arguments.posonlyargs, *arguments.args)]
    if named[:1] in (["self"], ["cls"]):
        named = named[1:]
    starred = sum(item is not None for item in (arguments.vararg, arguments.kwarg))
    return len(named) + len(arguments.kwonlyargs) + starred


def test_the_counting_is_right() -> None:
    (node,) = ast.parse("def f(self, a, /, b, *rest, c, d=1, **more): ...").body
    assert isinstance(node, ast.FunctionDef)
    assert parameters(node) == 6
