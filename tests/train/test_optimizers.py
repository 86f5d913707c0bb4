"""Optimizers against torch's and transformers' own, single steps in closed form, and the bytes and bits of their state."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import toys
from torch import Tensor, nn
from train import small_run
from train.test_resume import fingerprint
from transformers import Adafactor as PeerAdafactor

from almanac.core.errors import SelectionError, UnsupportedError
from almanac.core.value import Value
from almanac.data.collate import Row
from almanac.train.events.event import Event, StepDone
from almanac.train.loop import train
from almanac.train.optimizers.adafactor import Adafactor
from almanac.train.optimizers.adamw import AdamW
from almanac.train.optimizers.adamw_8bit import AdamW8bit, code_table, dequantize, quantize
from almanac.train.optimizers.lion import Lion
from almanac.train.optimizers.muon import COEFFICIENTS, Muon, newton_schulz
from almanac.train.optimizers.optimizer import Optimizer

OPTIMIZERS: dict[str, tuple[Optimizer, float]] = {
    "adafactor": (Adafactor(weight_decay=0.01), 0.5),
    "adafactor momentum": (Adafactor(beta1=0.9), 0.5),
    "lion": (Lion(weight_decay=0.01), 1e-3),
    "muon": (Muon(weight_decay=0.01), 5e-3),
    "8 bit": (AdamW8bit(adamw=AdamW(weight_decay=0.01), smallest=64), 5e-3),
}
every_optimizer = pytest.mark.parametrize(("optimizer", "rate"), OPTIMIZERS.values(), ids=OPTIMIZERS)


def parameters(seed: int = 0, dtype: torch.dtype = torch.float64) -> dict[str, nn.Parameter]:
    dice = torch.Generator().manual_seed(seed)
    shapes = {"layers.0.wide": (5, 9), "layers.0.tall": (12, 4), "layers.0.gain": (7,), "embed": (6, 4)}
    return {name: nn.Parameter(torch.randn(s, generator=dice, dtype=dtype)) for name, s in shapes.items()}


def give_gradients(given: dict[str, nn.Parameter], seed: int) -> None:
    dice = torch.Generator().manual_seed(1000 + seed)
    for parameter in given.values():
        parameter.grad = torch.randn(parameter.shape, generator=dice, dtype=torch.float64).to(parameter.dtype)


def stepped(optimizer: torch.optim.Optimizer, given: dict[str, nn.Parameter], *, rate: float, steps: int = 6) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate
    for step in range(steps):
        give_gradients(given, step)
        optimizer.step()


def assert_alike(ours: dict[str, nn.Parameter], theirs: dict[str, nn.Parameter], tolerance: float) -> None:
    for name, parameter in ours.items():
        assert float((parameter - theirs[name]).detach().abs().max()) <= tolerance, name


def test_adafactor_is_that_of_transformers() -> None:
    ours, theirs = parameters(), parameters()
    stepped(Adafactor().build(ours), ours, rate=0.05)
    peer = PeerAdafactor(theirs.values(), lr=0.05, relative_step=False, scale_parameter=True, warmup_init=False)
    stepped(peer, theirs, rate=0.05)
    assert_alike(ours, theirs, 1e-12)


def test_adafactor_is_that_of_torch_while_its_rate_is_below_its_cap() -> None:
    """torch takes min(rate, 1 / √t) and keeps its tiny number elsewhere; below the cap both are one. With decay."""
    ours, theirs = parameters(), parameters()
    stepped(Adafactor(weight_decay=0.1).build(ours), ours, rate=0.05)
    peers = [
        torch.optim.Adafactor(
            [p for p in theirs.values() if (p.dim() >= 2) == matrix], eps=(1e-30, 1e-3), weight_decay=decay
        )
        for matrix, decay in ((True, 0.1), (False, 0.0))
    ]
    for step in range(6):
        give_gradients(theirs, step)
        for peer in peers:
            peer.param_groups[0]["lr"] = 0.05
            peer.step()
    assert_alike(ours, theirs, 1e-12)


def test_adafactor_by_hand() -> None:
    """Two steps of a 2 × 2 matrix with momentum, written out."""
    start = torch.tensor([[1.0, -2.0], [3.0, 0.5]], dtype=torch.float64)
    gradients = [torch.tensor([[1.0, 2.0], [-4.0, 0.5]]).double(), torch.tensor([[0.1, -1.0], [2.0, 3.0]]).double()]
    weight = nn.Parameter(start.clone())
    optimizer = Adafactor(beta1=0.9).build({"w": weight})
    optimizer.param_groups[0]["lr"] = 0.1
    for gradient in gradients:
        weight.grad = gradient
        optimizer.step()
    theta, momentum = start.clone(), torch.zeros(2, 2).double()
    rows = columns = torch.zeros(2).double()
    for t, g in enumerate(gradients, 1):
        beta = 1 - t**-0.8
        rows = beta * rows + (1 - beta) * (g**2).mean(1)
        columns = beta * columns + (1 - beta) * (g**2).mean(0)
        u = g / (torch.outer(rows, columns) / rows.mean()).sqrt()
        u = u / max(1.0, float((u**2).mean().sqrt()))
        momentum = 0.9 * momentum + 0.1 * u
        theta = theta - 0.1 * float((theta**2).mean().sqrt()) * momentum
    torch.testing.assert_close(weight.detach(), theta, atol=1e-14, rtol=0)


def test_a_rank_one_second_moment_is_factored_exactly() -> None:
    """g² of rank 1: the factors give V itself, so that u is the sign of g (and is not clipped)."""
    g = torch.outer(torch.tensor([1.0, -2.0, 3.0]), torch.tensor([0.5, 4.0])).double()
    weight = nn.Parameter(torch.ones(3, 2).double())
    optimizer = Adafactor().build({"w": weight})
    optimizer.param_groups[0]["lr"] = 0.01
    weight.grad = g
    optimizer.step()
    torch.testing.assert_close(weight.detach(), 1 - 0.01 * g.sign())


def test_lion_by_hand() -> None:
    ours = parameters()
    theta = {name: p.detach().clone() for name, p in ours.items()}
    momentum = {name: torch.zeros_like(p) for name, p in theta.items()}
    stepped(Lion(weight_decay=0.3).build(ours), ours, rate=0.02)
    for step in range(6):
        twin = parameters()
        give_gradients(twin, step)
        for name, p in twin.items():
            g, decay = p.grad, 0.3 if p.dim() >= 2 else 0.0
            direction = (0.9 * momentum[name] + 0.1 * g).sign()
            theta[name] = theta[name] - 0.02 * (direction + decay * theta[name])
            momentum[name] = 0.99 * momentum[name] + 0.01 * g
    for name, p in ours.items():
        torch.testing.assert_close(p.detach(), theta[name], atol=1e-14, rtol=0)


@pytest.mark.parametrize("shape", [(6, 6), (4, 11), (11, 4), (3, 8, 5)])
def test_newton_schulz_maps_singular_values_and_keeps_their_vectors(shape: tuple[int, ...]) -> None:
    matrix = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    values = values / values.norm(dim=-1, keepdim=True)
    a, b, c = COEFFICIENTS
    for _ in range(5):
        values = a * values + b * values**3 + c * values**5
    torch.testing.assert_close(newton_schulz(matrix), left * values.unsqueeze(-2) @ right, atol=1e-10, rtol=0)
    assert float(values.min()) > 0.6 and float(values.max()) < 1.25
    assert not newton_schulz(torch.zeros(3, 4)).any()


def test_muon_is_torchs_to_its_bfloat16_and_others_are_adamw() -> None:
    ours, theirs = parameters(dtype=torch.float32), parameters(dtype=torch.float32)
    start = {name: p.detach().clone() for name, p in ours.items()}
    built = Muon(weight_decay=0.1, others=AdamW(weight_decay=0.2)).build(ours)
    assert sum(len(group["params"]) for group in built.param_groups) == 4
    stepped(built, ours, rate=0.02)
    hidden = [theirs["layers.0.wide"], theirs["layers.0.tall"]]
    muon = torch.optim.Muon(hidden, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW(
        [{"params": [theirs["layers.0.gain"]], "weight_decay": 0.0}, {"params": [theirs["embed"]], "weight_decay": 0.2}]
    )
    for step in range(6):
        give_gradients(theirs, step)
        for peer in (muon, adamw):
            for group in peer.param_groups:
                group["lr"] = 0.02
            peer.step()
    for name in ("layers.0.gain", "embed"):
        torch.testing.assert_close(ours[name], theirs[name], atol=2e-6, rtol=0)
    for parameter, peer in ((ours[name], theirs[name]) for name in ("layers.0.wide", "layers.0.tall")):
        moved = float((peer - start["layers.0.wide" if parameter.shape[0] == 5 else "layers.0.tall"]).detach().norm())
        assert float((parameter - peer).detach().norm()) < 0.02 * moved


def test_muon_steps_as_far_as_adamw_whatever_the_gradient() -> None:
    """RMS of an update is about 0.2 of the rate, for any shape and any scale of the gradient."""
    for shape in ((16, 64), (64, 16), (40, 40)):
        weight = nn.Parameter(torch.zeros(shape))
        optimizer = Muon(hidden="**").build({"w": weight})
        optimizer.param_groups[0]["lr"] = 1.0
        weight.grad = 1e-4 * torch.randn(shape, generator=torch.Generator().manual_seed(0))
        optimizer.step()
        assert float(weight.detach().square().mean().sqrt()) == pytest.approx(0.2, rel=0.15)


def test_muon_takes_hidden_matrices_of_a_model_and_leaves_the_rest() -> None:
    network = toys.model_of(toys.plain())
    named = dict(network.named_parameters())
    built = Muon().build(named)
    chosen = {id(p) for p in built.param_groups[0]["params"]}
    for name, parameter in named.items():
        assert (id(parameter) in chosen) == (name.startswith("layers.") and parameter.dim() >= 2)
    kernel = {
        "layers.0.kernel": nn.Parameter(torch.ones(8, 1, 4)),
        "layers.0.experts": nn.Parameter(torch.ones(3, 8, 4)),
    }
    assert [len(group["params"]) for group in Muon().build(kernel).param_groups] == [1, 1]
    with pytest.raises(SelectionError, match="Name the hidden layers"):
        Muon(hidden="blocks.**").build(named)


def test_the_code_tables_are_dynamic_trees() -> None:
    """Every code by its bits: sign, zeros up to the first one, then a linear fraction of [0.1, 1]."""
    signed, unsigned = code_table(signed=True), code_table(signed=False)
    for table in (signed, unsigned):
        assert len(table) == 256 and bool((table.diff() > 0).all())
        assert 0.0 in table.tolist() and table[-1] == 1.0
    magnitudes = set()
    for bits in range(1, 128):  # seven bits after the sign
        text = f"{bits:07b}"
        zeros = text.index("1")
        rest = text[zeros + 1 :]
        middle = 0.1 + 0.9 * ((int(rest, 2) if rest else 0) + 0.5) / 2 ** len(rest)
        magnitudes.add(round(middle * 10.0**-zeros, 12))
    found = [float(value) for value in signed if 0 < value < 1]
    assert found == pytest.approx(sorted(magnitudes), rel=1e-6)
    assert signed[0] > -1 and torch.equal(signed[(signed > 0) & (signed < 1)], -signed[signed < 0].flip(0))


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("count", [1, 255, 256, 257, 1000])
def test_rounding_is_to_the_nearest_code_of_the_block(signed: bool, count: int) -> None:
    dice = torch.Generator().manual_seed(count)
    values = torch.randn(count, generator=dice) * 10.0 ** torch.randint(-6, 3, (count,), generator=dice)
    values = values if signed else values.abs()
    codes, scales = quantize(values, 256, signed=signed)
    assert codes.dtype == torch.uint8 and len(codes) == count and len(scales) == -(-count // 256)
    back = dequantize(codes, scales, values.shape, block=256, signed=signed)
    table = code_table(signed=signed)
    for start in range(0, count, 256):
        block = values[start : start + 256]
        relative = block / block.abs().max()
        nearest = table[(relative[:, None] - table).abs().argmin(1)]
        nearest = torch.where((relative > 0) & (nearest == 0) & (not signed), table[1] if not signed else 0.0, nearest)
        torch.testing.assert_close(back[start : start + 256], nearest * block.abs().max(), atol=1e-12, rtol=1e-6)
    assert not dequantize(
        *quantize(torch.zeros(300), 256, signed=signed), torch.Size([300]), block=256, signed=signed
    ).any()


def test_a_small_second_moment_never_becomes_zero() -> None:
    """One outlier in a block: the others' roots would be 0 and their steps 1e8 times too long."""
    weight = nn.Parameter(torch.zeros(4096))
    optimizer = AdamW8bit().build({"w": weight})
    optimizer.param_groups[0]["lr"] = 1e-3
    gradient = torch.full((4096,), 1e-4)
    gradient[::256] = 1.0
    for _ in range(20):
        weight.grad = gradient
        optimizer.step()
    assert float(weight.detach().abs().max()) <= 20 * 1.001e-3


def quadratic(optimizer: Optimizer, *, steps: int = 300, rate: float = 0.05) -> tuple[list[float], Tensor, int]:
    """Descent on half the sum of squared distances from a target, uneven curvature, noisy gradients."""
    dice = torch.Generator().manual_seed(0)
    target, curvature = torch.randn(64, 128, generator=dice), 10.0 ** torch.rand(64, 128, generator=dice)
    weight = nn.Parameter(torch.zeros(64, 128))
    built = optimizer.build({"layers.w": weight})
    losses = []
    for step in range(steps):
        built.param_groups[0]["lr"] = rate * (1 - step / steps)
        distance = weight.detach() - target
        losses.append(float((curvature * distance**2).mean()) / 2)
        weight.grad = curvature * distance + 0.1 * torch.randn(64, 128, generator=dice)
        built.step()
    state = built.state[weight]
    return losses, weight.detach(), sum(item.nbytes for item in state.values() if isinstance(item, Tensor))


def test_8_bits_converge_as_32_do_with_a_quarter_of_the_bytes() -> None:
    full, weight, nbytes = quadratic(AdamW())
    ours, rounded, few = quadratic(AdamW8bit())
    assert full[-1] < 1e-3 * full[0]
    assert abs(ours[-1] - full[-1]) < 1e-5 * full[0]  # on the floor of the noise, both
    assert float((weight - rounded).abs().max()) < 0.1 and float((weight - rounded).square().mean().sqrt()) < 0.01
    numbers = 64 * 128
    assert few == 2 * numbers + 2 * 4 * numbers // 256 and few < 0.26 * (
        nbytes - 4
    )  # 4: torch counts steps in a tensor


def test_small_tensors_keep_32_bits_and_are_adamw() -> None:
    ours, theirs = parameters(dtype=torch.float32), parameters(dtype=torch.float32)
    stepped(AdamW8bit(adamw=AdamW(weight_decay=0.1)).build(ours), ours, rate=0.01)
    stepped(AdamW(weight_decay=0.1).build(theirs), theirs, rate=0.01)
    assert_alike(ours, theirs, 1e-6)


@every_optimizer
def test_state_has_the_bytes_it_should(optimizer: Optimizer, rate: float) -> None:
    weight = nn.Parameter(torch.ones(96, 80))
    built = optimizer.build({"layers.w": weight})
    weight.grad = torch.randn(96, 80)
    built.step()
    nbytes = sum(item.nbytes for item in built.state[weight].values() if isinstance(item, Tensor))
    numbers, factors = 96 * 80, 96 + 80
    assert (
        nbytes
        == {
            OPTIMIZERS["adafactor"][0]: 4 * factors,
            OPTIMIZERS["adafactor momentum"][0]: 4 * (factors + numbers),
            OPTIMIZERS["lion"][0]: 4 * numbers,
            OPTIMIZERS["muon"][0]: 4 * numbers,
            OPTIMIZERS["8 bit"][0]: 2 * numbers + 8 * numbers // 256,
        }[optimizer]
    )
    assert Value.from_dict(optimizer.to_dict()) == optimizer


def run_of(optimizer: Optimizer, rate: float, folder: Path | None = None, stop_at: int = 0) -> list[float]:
    losses: list[float] = []
    stop = threading.Event()

    def listener(event: Event) -> None:
        if isinstance(event, StepDone):
            losses.append(event.loss or 0.0)
            if event.step == stop_at:
                stop.set()

    small_run.run(
        folder, stop=stop, listeners=(listener,), optimizer=optimizer, learning_rate=rate, steps=30, save_every=4
    )
    return losses


@every_optimizer
def test_every_optimizer_learns_and_resumes_bit_for_bit(optimizer: Optimizer, rate: float, tmp_path: Path) -> None:
    losses = run_of(optimizer, rate, tmp_path / "whole")
    assert losses[-1] < 0.8 * losses[0]
    run_of(optimizer, rate, tmp_path / "cut", stop_at=14)
    run_of(optimizer, rate, tmp_path / "cut")
    assert fingerprint(tmp_path / "cut") == fingerprint(tmp_path / "whole")


def test_a_whole_model_learns_with_muon() -> None:
    network = toys.model_of(toys.plain())
    rows = [Row(row.tokens, (False, *(True,) * (len(row) - 1))) for row in small_run.doubling_rows()]
    chosen = small_run.settings(steps=40, optimizer=Muon(weight_decay=0.1), learning_rate=2e-2)
    losses: list[float] = []

    def listener(event: Event) -> None:
        if isinstance(event, StepDone):
            losses.append(event.loss or 0.0)

    train(network, chosen.batches(rows), settings=chosen, listeners=(listener,))
    assert losses[-1] < 0.75 * losses[0]


@pytest.mark.parametrize(
    "make",
    [
        lambda: Lion(beta1=1.0),
        lambda: Muon(momentum=-0.1),
        lambda: Adafactor(beta1=1.5),
        lambda: AdamW8bit(block=0),
    ],
)
def test_numbers_that_mean_nothing_are_refused(make: Callable[[], Optimizer]) -> None:
    with pytest.raises(UnsupportedError):
        make()


@every_optimizer
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_bytes_of_state_are_forecast(optimizer: Optimizer, rate: float, dtype: torch.dtype) -> None:
    for chosen in (optimizer, AdamW()):
        given = parameters(dtype=dtype)
        made = chosen.build(given)
        stepped(made, given, rate=rate, steps=1)
        counted = sum(
            value.nbytes
            for state in made.state.values()
            for key, value in state.items()
            if isinstance(value, Tensor) and key != "step"
        )
        if dtype is torch.float32 or not isinstance(chosen, AdamW8bit):
            assert chosen.state_bytes(given) == counted > 0
