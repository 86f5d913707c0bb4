"""``almanac scaling``: a law from small runs, and from a law the best use of a budget."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter, validators

from almanac.cli.interrupts import resumable
from almanac.cli.options import Json
from almanac.cli.printing import duration, emit, line, note, table
from almanac.cli.progress import reporting
from almanac.core.errors import RequestError

if TYPE_CHECKING:
    from almanac.evaluate.scaling_law import Fitted
    from almanac.pretrain.plan import Plan
    from almanac.pretrain.plan_machine import Machine
    from almanac.pretrain.plan_shape import Shape

Positive = Annotated[float | None, Parameter(validator=validators.Number(gt=0))]
Count = Annotated[int | None, Parameter(validator=validators.Number(gte=1))]


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Budget:
    """What may be spent, one of the three.

    Args:
        flops: Operations, as 6 N D counts them.
        minutes: Of this machine, which is tried for a moment to find out what they are worth.
        euros: For electricity.
        price: Euros a kWh.
        watts: What this machine draws while it trains; by default measured, or estimated from its processor time.
    """

    flops: Positive = None
    minutes: Positive = None
    euros: Positive = None
    price: Annotated[float, Parameter(validator=validators.Number(gt=0))] = 0.30
    watts: Positive = None

    def require_one(self, *, among: str = "--flops, --minutes or --euros") -> None:
        """Raises RequestError unless exactly one is given."""
        if sum(item is not None for item in (self.flops, self.minutes, self.euros)) != 1:
            raise RequestError("One budget is needed", remedy=f"Give one of {among}.")


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Planning:
    """What is known of the run that is planned.

    Args:
        law: A law.json, or the folder of a sweep; by default Chinchilla's law as fitted again by Besiroglu 2024.
        vocab_size: Tokens of the tokenizer; of a sweep, of the one that it trains.
        corpus_tokens: Different tokens that there are to train on; without it, as many as wanted.
        spec: Write the planned model there, for `almanac pretrain --spec`.
        context: Context length of that spec.
    """

    law: Path | None = None
    vocab_size: Count = None
    corpus_tokens: Count = None
    spec: Path | None = None
    context: Annotated[int, Parameter(validator=validators.Number(gte=2))] = 128


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Fitting:
    """How a law is fitted.

    Args:
        form: Chinchilla's L = E + A / N^alpha + B / D^beta, or Kaplan's, which has no floor and counts no embeddings.
        fit_loss: Of the residuals: Huber's on log L, squares of log L, or squares of L.
    """

    form: Literal["chinchilla", "kaplan"] = "chinchilla"
    fit_loss: Literal["huber", "log-squared", "squared"] = "huber"


NO_BUDGET, USUAL_PLAN, USUAL_FIT = Budget(), Planning(), Fitting()
PLANNED_VOCABULARY = 32_000


def scaling(
    action: Literal["plan", "fit", "sweep"],
    /,
    *inputs: Path,
    output: Path | None = None,
    budget: Budget = NO_BUDGET,
    planning: Planning = USUAL_PLAN,
    fitting: Fitting = USUAL_FIT,
    json: Json = False,
) -> int:
    """Fit a scaling law to small runs; plan a model for a budget.

    A sweep trains a grid of small models on your text, one after another, fits a law to all but the largest, writes down
    what it expects of that one, and only then trains it. A fit reads finished runs: folders, or a .csv, .json or .jsonl with
    parameters, tokens and loss. A plan tells for a budget which model to train on how many tokens, and the loss, time and
    energy to expect. A sweep that was stopped goes on where it was when the same command is run again.

    ```
    almanac scaling sweep books/ --output my-sweep --minutes 20
    almanac scaling plan --minutes 600 --law my-sweep --vocab-size 512 --corpus-tokens 4000000
    almanac scaling plan --flops 1e18 --spec planned.json
    almanac scaling fit my-sweep runs.csv --form kaplan --output law.json
    ```

    Args:
        action: What to do.
        inputs: For a sweep files and folders of text; for a fit runs; a plan takes none.
        output: For a sweep its folder; for a fit the file that the law is written to.
    """
    if action == "plan":
        if inputs or output is not None:
            raise RequestError("A plan takes no inputs and no output", remedy="Name the law with --law.")
        return _plan(budget, planning, json)
    if not inputs:
        raise RequestError(f"scaling {action} without inputs", remedy="Name runs to fit, or text for a sweep.")
    if action == "fit":
        return _fit(inputs, output, fitting, json)
    if output is None:
        raise RequestError("A sweep without a folder", remedy="Name one with --output.")
    return _sweep(inputs, output, budget, planning, json)


def _plan(budget: Budget, planning: Planning, json: bool) -> int:
    from almanac.evaluate.scaling import REFIT
    from almanac.files.store import write_json
    from almanac.pretrain.plan import plan
    from almanac.pretrain.sweep import read_law

    budget.require_one()
    told: dict[str, Any] = {
        "law": REFIT if planning.law is None else read_law(planning.law),
        "vocab_size": planning.vocab_size or PLANNED_VOCABULARY,
        "corpus_tokens": planning.corpus_tokens,
    }
    if budget.flops is not None:
        found = plan(budget.flops, **told)
    else:
        machine = _machine(told["vocab_size"], budget)
        found = plan(seconds=_seconds(budget, machine), machine=machine, **told)
    if planning.spec is not None:
        write_json(planning.spec, found.shape.spec(planning.context).to_dict())
    if json:
        emit(found.to_dict() | {"euros": found.euros(budget.price)})
        return 0
    _print_plan(found, budget.price)
    if planning.spec is not None:
        line(f"The model is in {planning.spec}. Try: almanac pretrain TEXTS --output RUN --spec {planning.spec}")
    return 0


def _machine(vocab_size: int, budget: Budget) -> Machine:
    from almanac.pretrain.plan_machine import Machine, probe

    def tell(shape: Shape, speed: float) -> None:
        note(f"this machine: {speed / 1e9:.1f} GFLOP/s with {shape.parameters:,} parameters")

    found = probe(vocab_size, tell=tell)
    return found if budget.watts is None else Machine(found.speeds, budget.watts, "watts as given")


def _seconds(budget: Budget, machine: Machine) -> float:
    """What the budget pays for: the minutes, or the time that the machine runs on so much electricity."""
    if budget.minutes is not None:
        return 60 * budget.minutes
    assert budget.euros is not None
    if not machine.watts:
        raise RequestError("What this machine draws is not known", remedy="Give it with --watts.")
    return 3600 * budget.euros / budget.price * 1000 / machine.watts


def _print_plan(found: Plan, price: float) -> None:
    shape, forecast = found.shape, found.forecast
    interval = "" if forecast.low == forecast.high else f" ({forecast.low:.3f} to {forecast.high:.3f})"
    rows = [
        ("model", f"a Llama of {shape.layers} layers of width {shape.hidden}, {shape.heads} heads"),
        ("parameters", f"{shape.parameters:,}; {shape.non_embedding:,} beside {shape.vocab_size:,} embeddings"),
        ("tokens", f"{found.tokens:,}" + ("" if found.epochs is None else f", the corpus {found.epochs:.1f} times")),
        ("operations", f"{found.flops:.3g}"),
        ("expected loss", f"{forecast.loss:.3f} nats a token{interval}"),
    ]
    if found.seconds is not None and found.watt_hours is not None:
        rows += [
            ("time", duration(found.seconds)),
            ("energy", f"{found.watt_hours:.3g} Wh, {found.euros(price):.3g} euros at {price:g} a kWh"),
        ]
    table(("figure", "value"), rows)
    for text in found.notes:
        note(text)


def _fit(inputs: tuple[Path, ...], output: Path | None, fitting: Fitting, json: bool) -> int:
    from almanac.evaluate.scaling_law import fitted
    from almanac.evaluate.scaling_loss import LOSSES
    from almanac.files.store import write_json
    from almanac.pretrain.sweep import FORMS
    from almanac.pretrain.sweep_points import read_runs

    form, size = FORMS[fitting.form]
    found = fitted(form, read_runs(inputs).points(size=size), loss=LOSSES[fitting.fit_loss])
    if output is not None:
        write_json(output, found.to_dict())
    if json:
        emit(found.to_dict())
        return 0
    table(("number", "value", "from", "to"), _numbers(found))
    repeats = found.points.tokens / found.points.fresh()
    if repeats.max() > 1:
        note(f"runs read their text up to {repeats.max():.1f} times; the law takes every token for a new one")
    line()
    line(f"{len(found.points)} runs; the worst is {abs(found.residuals()).max():.2%} off the law.")
    return 0


def _numbers(found: Fitted) -> list[tuple[str, ...]]:
    values = zip(found.law.names, found.law.values(), found.intervals().values(), strict=True)
    return [(name, f"{value:.5g}", f"{low:.5g}", f"{high:.5g}") for name, value, (low, high) in values]


def _sweep(texts: tuple[Path, ...], output: Path, budget: Budget, planning: Planning, json: bool) -> int:
    from almanac.files.strict_json import read_json
    from almanac.pretrain.sweep import FACTS, sweep
    from almanac.pretrain.sweep_report import figures
    from almanac.pretrain.sweep_settings import SweepSettings

    budget.require_one(among="--flops or --minutes")
    if budget.euros is not None:
        raise RequestError("A sweep for euros", remedy="Give --flops or --minutes.")
    settings = SweepSettings(flops=budget.flops, minutes=budget.minutes)
    if planning.vocab_size is not None:
        settings = settings.with_(vocab_size=planning.vocab_size)
    with resumable(), reporting(in_json=json) as report:
        sweep(texts, output, settings=settings, report=report)
    facts: Any = read_json(output / FACTS)
    if json:
        emit({"event": "done", "output": str(output), "forecast": facts["forecast"], "verdict": facts["verdict"]})
        return 0
    table(("figure", "value"), figures(facts))
    line()
    line(f"With curves: {output / 'report.html'}. Try:")
    line(f"  almanac scaling plan --minutes 600 --law {output} --vocab-size {settings.vocab_size}")
    return 0
