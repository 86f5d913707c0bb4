"""Training a network to answer at the end of a row, shared by the experiments on memory: what is asked last is scored."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from almanac.evidence.fixtures.fitting import count, fit, flops
from almanac.evidence.outcome import Outcome, require_disjoint

LOOKS = 8  # accuracy is measured this often on the way
ROWS_AT_ONCE = 128
SCORED = 256  # test rows of the nll


@dataclass(frozen=True)
class Task:
    """Rows to learn from and to be tested on.

    Shapes: ``inputs`` int64 [steps, rows, time], ``targets`` int64 [steps, rows, asked], the answers at the last ``asked``
    places; ``test_inputs`` [tests, time], ``test_targets`` [tests, asked].
    """

    inputs: Tensor
    targets: Tensor
    test_inputs: Tensor
    test_targets: Tensor

    @classmethod
    def split(cls, inputs: Tensor, targets: Tensor, *, tests: int, rows: int) -> Task:
        """The first ``tests`` rows for the test, less those that are among the others, which come in batches of ``rows``."""
        texts = [row.tobytes() for row in inputs.to(torch.uint8).numpy()]
        learned = set(texts[tests:])
        kept = [place for place, text in enumerate(texts[:tests]) if text not in learned]
        require_disjoint(learned, (texts[place] for place in kept))
        batches = (item[tests:].unflatten(0, (-1, rows)) for item in (inputs, targets))
        return cls(*batches, inputs[kept], targets[kept])


def train(network: nn.Module, task: Task, *, rate: float) -> Outcome:
    """Trains over all batches once; accuracy and nll (nats per answer) on the test, and what the last quarter brought."""
    steps, asked = len(task.inputs), task.targets.shape[-1]
    curve: list[tuple[float, float]] = []

    def outputs(tokens: Tensor) -> Tensor:
        return network(tokens)[:, -asked:]

    def loss(step: int) -> Tensor:
        if step % (steps // LOOKS) == 0:
            curve.append((step, measure()))
        return F.cross_entropy(outputs(task.inputs[step]).flatten(0, 1), task.targets[step].flatten())

    @torch.no_grad()
    def measure() -> float:
        found = torch.cat([outputs(part).argmax(-1) for part in task.test_inputs.split(ROWS_AT_ONCE)])
        return float((found == task.test_targets).float().mean())

    losses = fit(network.parameters(), loss, steps=steps, rate=rate)
    curve.append((steps, measure()))
    with torch.no_grad():
        logits = outputs(task.test_inputs[:SCORED]).flatten(0, 1)
        nll = float(F.cross_entropy(logits, task.test_targets[:SCORED].flatten()))
    quarter = steps // 4
    return Outcome(
        metrics={
            "accuracy": curve[-1][1],
            "nll": nll,
            "late_gain": curve[-1][1] - dict(curve)[steps // LOOKS * (LOOKS * 3 // 4)],
            "late_loss_fall": 1 - sum(losses[-50:]) / sum(losses[-quarter - 25 : -quarter + 25]),
        },
        budget={
            "tokens": float(task.inputs.numel()),
            "parameters": float(count(network)),
            "flops": steps * flops(lambda: outputs(task.inputs[0]).sum().backward()),
            "steps": float(steps),
        },
        curves={"accuracy": curve},
    )
