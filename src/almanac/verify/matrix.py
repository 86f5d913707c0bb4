"""The matrix technique x family x weight format, found by trying each pair on toy models, never by belief.

``python -m almanac.verify.matrix`` writes ``docs/matrix.md``; ``--check`` compares instead and fails where it is stale.
A cell says *yes* when the technique attached, the outputs stayed finite, gradients reached what it trains, and the
model came back bit for bit from spec, plan and tensors; else it gives the reason of the refusal.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import torch
from torch import Tensor, nn

from almanac.core.catalog import technique_classes, techniques
from almanac.core.errors import AlmanacError, NotFoundError, ParityError
from almanac.core.site import Leaf
from almanac.core.technique import Plan, Technique, assemble, initialise
from almanac.core.weight import StoredWeight
from almanac.files.gguf.formats import FORMATS
from almanac.models.family import families, family_for
from almanac.models.tiny import anatomy, tiny_spec
from almanac.nn.stack import Decoder

DENSE = "dense"
TIME = 6
WIDE = {"hidden_size": 256, "intermediate_size": 256, "num_key_value_heads": 1, "num_hidden_layers": 2}
"""One block of the largest kind, so that every block format fits."""
FORMATS_FOR_ALL = (DENSE, "int8", "Q8_0")

HEAD = """# What works with what

Written by `python -m almanac.verify.matrix`: every pair below was tried on a tiny model whose weights are kept in the named
format, a Llama in every format, and families of every anatomy (made of the same kinds of modules, so that one is tried
for all of a line) in three. "yes" means that the technique attached, outputs stayed finite, gradients reached what it
trains, and spec, plan and tensors gave the same model back, bit for bit. Everything else is refused, with the reason.
"""


@dataclasses.dataclass(frozen=True)
class Cell:
    """One technique on models of one anatomy in one weight format; ``reason`` is None where it works."""

    technique: str
    family: str  # or families, by name
    format: str
    reason: str | None


@dataclasses.dataclass(frozen=True)
class _Base:
    """A toy model as it would lie on disk before the technique acts."""

    spec: Decoder.Spec
    plan: Plan
    tensors: dict[str, Tensor]


def all_techniques() -> list[Technique]:
    """Every technique of the catalog with its defaults, by name."""
    return [cls() for module in techniques().values() for cls in technique_classes(module)]


def weight_formats() -> dict[str, Plan]:
    """The plans that put every linear map and embedding into a stored form, by name; ``dense`` is the empty one.

    A technique that leaves a stored weight behind is a format; one with a field ``format`` is one per name it takes.
    """
    found = {DENSE: Plan()}
    for technique in all_techniques():
        fields = {field.name for field in dataclasses.fields(technique)}
        variants: list[tuple[str, dict[str, str]]] = [(technique.title.rpartition(".")[2], {})]
        if "format" in fields:
            variants = [(entry.name, {"format": entry.name}) for entry in FORMATS.values() if entry.block_size > 1]
        everywhere = {"targets": "**"} if "targets" in fields else {}
        for name, changes in variants:
            plan = Plan(techniques=(technique.with_(**changes, **everywhere),))
            if _stores(plan):
                found[name] = plan
    return found


def cells() -> list[Cell]:
    """Tries everything on everything, on one thread: the models are too small to gain from more."""
    chosen, found, formats = all_techniques(), list[Cell](), weight_formats()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for family, spec in _specs().items():
            for format in formats if family == WIDEST else [name for name in FORMATS_FOR_ALL if name in formats]:
                _, model = formats[format].replay(spec, initialise(spec.build(), seed=0))
                base = _Base(spec, formats[format], _tensors(model))
                for technique in chosen:
                    found.append(Cell(technique.title, family, format, _reason(partial(_attempt, base, technique))))
    finally:
        torch.set_num_threads(threads)
    return found


def render() -> str:
    """The matrix as Markdown: a list of formats and a table of families for each technique, reasons below."""
    found, formats = cells(), list(weight_formats())
    parts = [HEAD]
    for technique in all_techniques():
        mine = {(cell.family, cell.format): cell.reason for cell in found if cell.technique == technique.title}
        reasons = sorted({reason for reason in mine.values() if reason is not None})
        lines = [f"## {technique.title}", "", _promises(technique), "", _row(["model", *formats])]
        lines.append(_row(["---"] * (len(formats) + 1)))
        lines.append(_row([WIDEST, *(_mark(mine[WIDEST, format], reasons) for format in formats)]))
        columns = [format for format in FORMATS_FOR_ALL if format in formats]
        lines += ["", _row(["families", *columns]), _row(["---"] * (len(columns) + 1))]
        for family in _specs():
            if family != WIDEST:
                lines.append(_row([family, *(_mark(mine[family, format], reasons) for format in columns)]))
        if reasons:
            lines += ["", *(f"{number}. {reason}" for number, reason in enumerate(reasons, 1))]
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def main(arguments: list[str]) -> int:
    """Writes docs/matrix.md, or with ``--check`` says whether it is up to date (exit code 1 if not)."""
    target = _documents() / "matrix.md"
    text = render()
    if arguments == ["--check"]:
        fresh = target.is_file() and target.read_text(encoding="utf-8") == text
        print(f"{target.name} is {'up to date' if fresh else 'stale: run python -m almanac.verify.matrix'}")
        return 0 if fresh else 1
    if arguments:
        print("usage: python -m almanac.verify.matrix [--check]")
        return 2
    target.write_text(text, encoding="utf-8")
    print(f"wrote {target.name}")
    return 0


def _documents() -> Path:
    folder = Path(__file__).parents[3] / "docs"
    if not folder.is_dir():
        raise NotFoundError("The folder docs is not beside the sources", remedy="Run this in a checkout.")
    return folder


WIDEST = "llama of width 256"


@cache
def _specs() -> dict[str, Decoder.Spec]:
    """The models that are tried: the one for every format, then one of each anatomy under the names of all of it."""
    named: dict[frozenset[str], list[str]] = {}
    specs = {family.model_type: tiny_spec(family) for family in families()}
    for name, spec in specs.items():
        named.setdefault(anatomy(spec), []).append(name)
    tried = {", ".join(names): specs[names[0]] for names in named.values()}
    return {WIDEST: tiny_spec(family_for("llama"), **WIDE), **tried}


def _stores(plan: Plan) -> bool:
    """Whether a model after ``plan`` holds stored weights; seen on the meta device, where it costs nothing."""
    spec = next(iter(_specs().values()))
    with torch.device("meta"):
        _, model = plan.replay(spec, spec.build())
    leaves = [module for module in model.modules() if isinstance(module, Leaf)]
    return all(isinstance(leaf.weight, StoredWeight) for leaf in leaves)


def _reason(attempt: Callable[[], None]) -> str | None:
    try:
        attempt()
    except AlmanacError as error:
        return error.cause
    return None


def _attempt(base: _Base, technique: Technique) -> None:
    """Raises what the technique raises, or ParityError where it does not keep what the head of this file says."""
    model = assemble(base.spec, base.plan, base.tensors)
    before = {id(parameter) for parameter in model.parameters()}
    _, model = Plan(techniques=(technique,)).replay(base.spec, model)
    model.eval()
    tokens = torch.arange(2 * TIME).view(2, TIME)
    output: Tensor = model(tokens)
    if not bool(torch.isfinite(output).all()):
        raise ParityError(f"{technique.title} gives outputs that are not finite", remedy="Report this pair.")
    trained = [item for item in model.parameters() if id(item) not in before and item.requires_grad]
    if technique.trains:
        output.square().mean().backward()
        if not trained or any(item.grad is None for item in trained):
            raise ParityError(f"{technique.title} trains nothing here", remedy="Report this pair.")
    with torch.no_grad():  # as it is loaded: with gradients torch may take another kernel
        expected: Tensor = model(tokens)
    _require_same(assemble(base.spec, base.plan.then(technique), _tensors(model)), tokens, expected)


def _require_same(loaded: nn.Module, tokens: Tensor, expected: Tensor) -> None:
    with torch.no_grad():
        if not torch.equal(loaded(tokens), expected):
            raise ParityError("Spec, plan and tensors give another model back", remedy="Report this pair.")


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return {name: item.detach().clone() for name, item in model.named_parameters(remove_duplicate=False)}


def _promises(technique: Technique) -> str:
    claims = {
        "outputs unchanged at the start": technique.identity_at_start,
        "folds into dense weights": technique.folds,
        "trains its own parameters": technique.trains,
    }
    kept = [claim for claim, holds in claims.items() if holds]
    return f"Promises: {', '.join(kept)}." if kept else "Promises nothing beyond acting."


def _mark(reason: str | None, reasons: list[str]) -> str:
    return "yes" if reason is None else f"no ({reasons.index(reason) + 1})"


def _row(items: list[str]) -> str:
    return f"| {' | '.join(items)} |"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
