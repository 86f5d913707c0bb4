"""The tree is the table of contents: names that say something, exports only in ``__init__``, and no copies."""

from __future__ import annotations

import ast
import io
import subprocess
import sys
import tokenize
from collections import defaultdict

from ratchets.sources import Source, checked_sources, package_sources, report, repository_files, sources

import almanac

DRAWERS = {
    "utils", "util", "helpers", "helper", "common", "misc", "base", "manager", "managers", "legacy", "new", "old", "v2",
    "tools_misc", "shared", "stuff", "functions", "constants",
}  # fmt: skip
PUBLIC = [
    "LanguageModel",
    "adapt",
    "add_document",
    "ask",
    "build",
    "compress",
    "curate",
    "finetune",
    "list_documents",
    "load",
    "load_encoder",
    "open_assistant",
    "pretrain",
    "remove_document",
    "sampling",
    "serve",
    "verify_model",
]
BLOCK = 12  # lines that may not stand in two places


def test_the_public_names_are_exactly_these() -> None:
    assert sorted(almanac.__all__) == PUBLIC
    assert dir(almanac) == PUBLIC
    missing = [name for name in PUBLIC if getattr(almanac, name, None) is None]
    assert not missing


def test_importing_almanac_imports_nothing_heavy() -> None:
    script = "import sys, almanac; print(*sorted({name.split('.')[0] for name in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "almanac" in loaded
    assert not loaded & {"torch", "numpy", "tokenizers", "safetensors", "jinja2", "rich", "cyclopts"}


def test_file_names_say_something() -> None:
    names, problems = list(repository_files()), []
    assert "README.md" in names  # nothing would be wrong with no file
    for name in names:
        parts = name.split("/")
        stems = [*parts[:-1], parts[-1].split(".")[0].removeprefix("test_")]
        problems += [f"{name}: {stem!r} is a drawer" for stem in stems if stem.lower() in DRAWERS]
    report(problems)


def test_every_module_says_what_it_is() -> None:
    every = list(sources())
    assert any(source.path.endswith("core/site.py") for source in every)
    silent = [
        source.path
        for source in every
        if not ast.get_docstring(source.tree) and not (source.path.endswith("__init__.py") and not source.text.strip())
    ]
    report(silent)


def test_package_files_hold_exports_only() -> None:
    packages, problems = list(package_sources()), []
    assert any(source.path.endswith("almanac/__init__.py") for source in packages)
    for source in packages:
        if source.path.endswith("/__init__.py"):
            problems += [
                f"{source.path}:{node.lineno} {type(node).__name__}"
                for node in source.tree.body
                if not _is_export(node)
            ]
    report(problems)


def _is_export(node: ast.stmt) -> bool:
    """A docstring, an import, a constant table of names, or the two functions that make exports lazy."""
    if isinstance(node, ast.Import | ast.ImportFrom):
        return True
    if isinstance(node, ast.Expr):
        return isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    if isinstance(node, ast.If):
        return ast.unparse(node.test) == "TYPE_CHECKING" and all(_is_export(item) for item in node.body)
    if isinstance(node, ast.FunctionDef):
        return node.name in ("__getattr__", "__dir__")
    if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        named = all(isinstance(item, ast.Name) and (item.id.startswith("__") or item.id.isupper()) for item in targets)
        return named and all(isinstance(item, LITERALS) for item in ast.walk(node.value))
    return False


LITERALS = (ast.Constant, ast.Tuple, ast.List, ast.Dict, ast.Load)


def code_lines(source: Source) -> list[tuple[int, str]]:
    """(number, normalised text) of lines that say something: no comments, docstrings, imports or lone brackets."""
    skipped: set[int] = set()
    for node in ast.walk(source.tree):
        is_text = (
            isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        )
        if is_text or isinstance(node, ast.Import | ast.ImportFrom):
            skipped.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    words: dict[int, list[str]] = defaultdict(list)
    for token in tokenize.generate_tokens(io.StringIO(source.text).readline):
        if (
            token.type in (tokenize.NAME, tokenize.NUMBER, tokenize.STRING, tokenize.OP)
            and token.start[0] not in skipped
        ):
            words[token.start[0]].append(token.string)
    return [(number, " ".join(items)) for number, items in sorted(words.items()) if "".join(items).strip("()[]{},:")]


def copies(given: tuple[Source, ...]) -> list[str]:
    """Where a run of ``BLOCK`` normalised lines stands for a second time; overlapping runs are told once."""
    first: dict[tuple[str, ...], tuple[str, int]] = {}
    problems, told = [], set[tuple[str, str]]()
    for source in given:
        lines = code_lines(source)
        for index in range(len(lines) - BLOCK + 1):
            block = tuple(text for _, text in lines[index : index + BLOCK])
            path, number = first.setdefault(block, (source.path, lines[index][0]))
            if (path, number) != (source.path, lines[index][0]) and (path, source.path) not in told:
                told.add((path, source.path))
                problems.append(f"{source.path}:{lines[index][0]} repeats {path}:{number}")
    return problems


def test_no_block_stands_twice() -> None:
    report(copies(tuple(source for source in checked_sources() if not source.is_test)))
    report(copies(tuple(source for source in checked_sources() if source.is_test)))


def test_the_detector_sees_through_layout() -> None:
    body = [f"    value_{index} = first({index}, second)" for index in range(BLOCK)]
    one = "def f():\n" + "\n".join(body)
    two = "import x\n\ndef g():\n    '''Other.'''\n" + "\n\n".join(line + "  # why" for line in body)
    made = [Source(name, text, ast.parse(text)) for name, text in (("one", one), ("two", two))]
    assert copies(tuple(made)) == ["two:5 repeats one:2"]
    shorter = "\n".join(["def h():", *body[:-1]])
    assert copies((made[0], Source("three", shorter, ast.parse(shorter)))) == []
