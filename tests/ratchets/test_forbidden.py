"""What has burnt others stays out: code in data, shells, unchecked archives, sniffing, stubs, and machine paths."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Callable, Iterator

import pytest
from ratchets.sources import OWN_FOLDER, ROOT, checked_sources, package_sources, report, repository_files

Finding = tuple[int, str]

CODE_IN_DATA = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
CALLS = {
    "eval", "exec", "compile", "__import__", "torch.load", "torch.jit.load", "torch.hub.load", "os.system", "os.popen",
    "yaml.load", "yaml.unsafe_load", "yaml.full_load", "numpy.load", "np.load", "jinja2.Environment",
    "jinja2.Template", "Environment", "Template", "tempfile.mktemp", "ssl._create_unverified_context",
}  # fmt: skip
METHODS = {"extractall", "unpack_archive"}
KEYWORDS = {("shell", True), ("verify", False), ("trust_remote_code", True), ("allow_pickle", True)}
ANYWHERE = "0.0.0.0"


def forbidden(tree: ast.AST) -> Iterator[Finding]:
    """Imports and calls that run what a file says, or switch a check off."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, f"import {a.name}") for a in node.names if a.name.split(".")[0] in CODE_IN_DATA)
        elif isinstance(node, ast.ImportFrom):
            if (node.module or "").split(".")[0] in CODE_IN_DATA:
                yield node.lineno, f"from {node.module} import"
            for alias in node.names:
                if f"{node.module}.{alias.name}" in CALLS:
                    yield node.lineno, f"from {node.module} import {alias.name}"
        elif isinstance(node, ast.Call):
            yield from _call(node)


def _call(node: ast.Call) -> Iterator[Finding]:
    name = ast.unparse(node.func)
    if name in CALLS or name.removeprefix("builtins.") in {"eval", "exec"} or name.rpartition(".")[2] in METHODS:
        yield node.lineno, f"{name}(...)"
    for keyword in node.keywords:
        value = keyword.value.value if isinstance(keyword.value, ast.Constant) else None
        if keyword.arg == "trust_remote_code" and value is not False:
            yield node.lineno, "trust_remote_code"
        elif (keyword.arg, value) in KEYWORDS and isinstance(value, bool):
            yield node.lineno, f"{keyword.arg}={value}"
    for item in [*node.args, *(keyword.value for keyword in node.keywords)]:
        if isinstance(item, ast.Constant) and item.value == ANYWHERE:
            yield node.lineno, "an address open to everyone"


def swallowed(tree: ast.AST) -> Iterator[Finding]:
    """``except Exception: pass`` and its kin: a failure that nobody will ever hear of."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ExceptHandler):
            caught = "everything" if node.type is None else ast.unparse(node.type)
            silent = all(isinstance(item, ast.Pass | ast.Continue) or _is_ellipsis(item) for item in node.body)
            if node.type is None or (silent and caught in ("Exception", "BaseException")):
                yield node.lineno, f"except {caught}"


def sniffing(tree: ast.AST) -> Iterator[Finding]:
    """Behaviour chosen by attribute presence or by the name of a type."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("hasattr", "builtins.hasattr"):
            yield node.lineno, "hasattr"
        judged: list[ast.expr] = []
        if isinstance(node, ast.Compare):
            judged = [node.left, *node.comparators]
        elif isinstance(node, ast.Match):
            judged = [node.subject]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            judged = [node.func.value]
        if any(_is_type_name(item) for expression in judged for item in ast.walk(expression)):
            yield node.lineno, "the name of a type decides"


def _is_type_name(node: ast.AST) -> bool:
    if not (isinstance(node, ast.Attribute) and node.attr in ("__name__", "__qualname__")):
        return False
    owner = ast.unparse(node.value)
    return owner.startswith("type(") or owner.endswith("__class__")


def stubs(tree: ast.AST) -> Iterator[Finding]:
    """Functions that only promise: NotImplementedError, or an empty body that is no contract."""
    abstract_classes = {
        item
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef) and any(ast.unparse(base).endswith("Protocol") for base in node.bases)
        for item in node.body
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Raise) and node.exc is not None and "NotImplementedError" in ast.unparse(node.exc):
            yield node.lineno, "NotImplementedError"
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node not in abstract_classes:
            contract = any(
                "abstractmethod" in ast.unparse(item) or "overload" in ast.unparse(item) for item in node.decorator_list
            )
            body = node.body[1:] if ast.get_docstring(node) is not None else node.body
            if not contract and all(isinstance(item, ast.Pass) or _is_ellipsis(item) for item in body):
                yield node.lineno, f"{node.name} does nothing"


def _is_ellipsis(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and node.value.value is ...


def test_nothing_runs_what_a_file_says() -> None:
    report([f"{source.path}:{line} {what}" for source in checked_sources() for line, what in forbidden(source.tree)])


def test_no_failure_is_swallowed() -> None:
    report([f"{source.path}:{line} {what}" for source in checked_sources() for line, what in swallowed(source.tree)])


def test_nothing_is_sniffed() -> None:
    report([f"{source.path}:{line} {what}" for source in package_sources() for line, what in sniffing(source.tree)])


def test_there_are_no_stubs() -> None:
    report([f"{source.path}:{line} {what}" for source in package_sources() for line, what in stubs(source.tree)])


def test_there_are_no_reminders() -> None:
    marks = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b")
    problems = []
    for source in checked_sources():
        for token in tokenize.generate_tokens(io.StringIO(source.text).readline):
            if token.type == tokenize.COMMENT and marks.search(token.string):
                problems.append(f"{source.path}:{token.start[0]} {token.string}")
    report(problems)


PATHS = re.compile(r"(?<![\w.])/(work|root|home/\w+|Users/\w+)\b|[A-Z]:\\\\?Users")
REGISTRIES = re.compile(
    r"pypi\.org|pythonhosted\.org|npmjs\.|crates\.io|proxy\.golang\.org|conda\.anaconda|rubygems\.org"
)
TEXTS = (".py", ".md", ".toml", ".txt", ".json", ".yml", ".yaml", ".c", ".cfg", ".html", ".js", ".css", ".sh")


def test_no_file_names_a_machine_or_a_registry() -> None:
    problems = []
    for name in repository_files():
        if name.startswith(f"{OWN_FOLDER}/") or not (name.endswith(TEXTS) or name in ("Makefile", ".gitignore")):
            continue
        for number, line in enumerate((ROOT / name).read_text(encoding="utf-8").splitlines(), 1):
            for pattern in (PATHS, REGISTRIES):
                if found := pattern.search(line):
                    problems.append(f"{name}:{number} {found[0]}")
    report(problems)


@pytest.mark.parametrize(
    ("check", "bad"),
    [
        (forbidden, "import pickle"),
        (forbidden, "import pickle.whichmodule as p"),
        (forbidden, "from dill import load"),
        (forbidden, "from torch import load"),
        (forbidden, "torch.load(path, weights_only=True)"),
        (forbidden, "eval(text)"),
        (forbidden, "builtins.exec(text)"),
        (forbidden, "subprocess.run(x, shell=True)"),
        (forbidden, "yaml.load(x)"),
        (forbidden, "archive.extractall(folder)"),
        (forbidden, "requests.get(x, verify=False)"),
        (forbidden, "jinja2.Environment()"),
        (forbidden, "from jinja2 import Environment"),
        (forbidden, "f(trust_remote_code=flag)"),
        (forbidden, "f(trust_remote_code=True)"),
        (forbidden, "serve('0.0.0.0')"),
        (swallowed, "try: f()\nexcept: pass"),
        (swallowed, "try: f()\nexcept Exception: pass"),
        (swallowed, "for x in y:\n  try: f()\n  except BaseException: continue"),
        (sniffing, "hasattr(x, 'y')"),
        (sniffing, "type(x).__name__ == 'Linear'"),
        (sniffing, "x.__class__.__name__ in names"),
        (sniffing, "type(x).__name__.startswith('Linear')"),
        (sniffing, "'Linear' in type(x).__qualname__"),
        (stubs, "def f(): raise NotImplementedError"),
        (stubs, "def f(): raise NotImplementedError('later')"),
        (stubs, "def f():\n  '''Later.'''"),
        (stubs, "def f(): pass"),
        (stubs, "class A:\n  def f(self): ..."),
    ],
)
def test_the_checks_find_what_they_are_for(check: Callable[[ast.AST], Iterator[Finding]], bad: str) -> None:
    assert list(check(ast.parse(bad)))


@pytest.mark.parametrize(
    ("check", "good"),
    [
        (forbidden, "model.eval()"),
        (forbidden, "re.compile(x); pattern.exec"),
        (forbidden, "SandboxedEnvironment(); f(trust_remote_code=False); f(verify=True, shell=False)"),
        (forbidden, "json.load(stream); sharded.load(path)"),
        (swallowed, "try: f()\nexcept OSError: pass"),
        (swallowed, "try: f()\nexcept Exception as error: log(error)"),
        (sniffing, "name = type(x).__name__"),
        (sniffing, "isinstance(x, Linear); f'{type(x).__name__}'"),
        (stubs, "class A(Protocol):\n  def f(self): ..."),
        (stubs, "class A:\n  @abstractmethod\n  def f(self): ..."),
    ],
)
def test_the_checks_leave_the_rest_alone(check: Callable[[ast.AST], Iterator[Finding]], good: str) -> None:
    assert not list(check(ast.parse(good)))
