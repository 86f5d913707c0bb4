"""Neurons against a loop, their gradient against finite differences, their mixers against the contract, and the counts."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import pytest
import torch
from nn.recurrent.mixing import HIDDEN, PIECES, VOCAB, built, decoder, in_pieces, numbers, whole
from torch import Tensor

from almanac.core.errors import ShapeError, UnsupportedError
from almanac.core.spec import Spec
from almanac.core.state import Context
from almanac.generate.engine import Engine, Request, run_all
from almanac.nn.frontier.energy import recording
from almanac.nn.frontier.spiking import LeakyNeurons, SpikingTokens, fire, spiking_channels, spiking_tokens
from almanac.nn.frontier.surrogate import Arctan, FastLogistic, Logistic, Surrogate, Triangle
from almanac.nn.norm import NoNorm
from almanac.nn.recurrent.scan import starts
from almanac.nn.two_mixer_block import TwoMixerBlock
from almanac.verify.leak import leaks_of

SURROGATES: tuple[Surrogate, ...] = (Arctan(), Logistic(), FastLogistic(), Triangle(), Arctan(alpha=5.0))
MIXERS = {"tokens": lambda: spiking_tokens(HIDDEN), "channels": lambda: spiking_channels(HIDDEN, 40)}
NEURONS = LeakyNeurons.Spec(leak=0.3, threshold=0.7)


@pytest.fixture(params=MIXERS)
def spec(request: pytest.FixtureRequest) -> Spec:
    """A mixer's spec whose neurons fire often."""
    return MIXERS[request.param]().replace("{inward,outward}", threshold=0.3)


def by_loop(x: Tensor, membrane: Tensor, begins: Tensor, neurons: LeakyNeurons.Spec) -> tuple[Tensor, Tensor]:
    """The equations, one neuron and one token at a time."""
    spikes = torch.zeros_like(x)
    after = membrane.clone()
    for row in range(x.shape[0]):
        for cell in range(x.shape[2]):
            h = float(membrane[row, cell])
            for time in range(x.shape[1]):
                h = 0.0 if begins[row, time] else h
                u = h + neurons.leak * (float(x[row, time, cell]) - h)
                spikes[row, time, cell] = float(u >= neurons.threshold)
                h = 0.0 if u >= neurons.threshold else u
            after[row, cell] = h
    return spikes, after


def test_neurons_are_their_equations() -> None:
    x = 2 * numbers(3, 40, dtype=torch.float64)[..., :5]
    membrane = numbers(3, 1, seed=1, dtype=torch.float64)[:, 0, :5] / 4
    segments = torch.tensor([[0] * 40, [0] * 7 + [1] * 33, [3] * 39 + [-1]])
    begins = starts(segments)
    assert begins is not None
    spikes, after = NEURONS.build()(x, membrane, begins)
    expected = by_loop(x, membrane, begins, NEURONS)
    assert torch.equal(spikes, expected[0]) and 0.05 < spikes.mean() < 0.5
    torch.testing.assert_close(after, expected[1])
    plain, _ = NEURONS.build()(x, membrane, None)
    assert torch.equal(plain[0], spikes[0]) and not torch.equal(plain[1:], spikes[1:])


def test_a_constant_current_gives_the_rate_that_a_neuron_has_in_closed_form() -> None:
    """u_n = I (1 - (1-λ)^n) reaches θ first at n = ceil(log(1 - θ/I) / log(1-λ)), and then all begins anew."""
    for current in (0.6, 0.8, 1.5, 7.0):
        spikes, _ = NEURONS.build()(torch.full((1, 400, 1), current), torch.zeros(1, 1), None)
        if current <= NEURONS.threshold:
            assert not spikes.any()
            continue
        period = 1
        while current * (1 - (1 - NEURONS.leak) ** period) < NEURONS.threshold:
            period += 1
        assert spikes[0, :, 0].nonzero().flatten().tolist() == list(range(period - 1, 400, period))


@pytest.mark.parametrize("surrogate", SURROGATES, ids=str)
def test_a_slope_is_the_derivative_of_its_primitive(surrogate: Surrogate) -> None:
    u = torch.linspace(-2.3, 2.3, 90, dtype=torch.float64)  # not on a kink
    step = 1e-6
    found = (surrogate.primitive(u + step) - surrogate.primitive(u - step)) / (2 * step)
    torch.testing.assert_close(surrogate.slope(u), found, rtol=0, atol=1e-5)
    assert surrogate.spike(u).unique().tolist() == [0, 1] and surrogate.spike(torch.zeros(1)).item() == 1


def test_a_steep_curve_is_the_spike_itself() -> None:
    u = torch.tensor([-1.0, -0.1, 0.1, 1.0])
    torch.testing.assert_close(Logistic(beta=1e4).primitive(u), Logistic().spike(u))


@dataclass(frozen=True, kw_only=True)
class Smooth(Surrogate):
    """Neurons that send the primitive itself: then what is learned from is the true gradient."""

    def spike(self, u: Tensor) -> Tensor:
        return self.primitive(u)

    def slope(self, u: Tensor) -> Tensor:
        return Arctan().slope(u)

    def primitive(self, u: Tensor) -> Tensor:
        return Arctan().primitive(u)


def test_the_way_back_through_time_and_reset_is_right_by_finite_differences() -> None:
    x = numbers(2, 6, dtype=torch.float64)[..., :3].transpose(0, 1).contiguous().requires_grad_()
    membrane = numbers(2, 1, seed=2, dtype=torch.float64)[:, 0, :3].contiguous().requires_grad_()
    kept = torch.ones(6, 2, 1, dtype=torch.float64)
    kept[3, 1] = 0
    for given in (None, kept):
        assert torch.autograd.gradcheck(lambda a, b, k=given: fire(a, b, k, 0.3, 0.4, Smooth()), (x, membrane))


def test_a_spike_lets_the_surrogates_slope_through() -> None:
    x = torch.tensor([[[0.9]]], requires_grad=True)
    spikes, _ = LeakyNeurons.Spec(leak=1.0).build()(x, torch.zeros(1, 1), None)
    spikes.sum().backward()
    assert spikes.item() == 0 and x.grad is not None
    torch.testing.assert_close(x.grad.flatten(), Arctan().slope(torch.tensor([-0.1])))


@pytest.mark.parametrize("pieces", PIECES, ids=str)
def test_pieces_give_what_the_whole_gives(spec: Spec, pieces: tuple[int, ...]) -> None:
    layer, x = built(spec, dtype=torch.float64), numbers(3, sum(pieces), dtype=torch.float64)
    torch.testing.assert_close(in_pieces(layer, x, pieces), whole(layer, x), rtol=1e-9, atol=1e-9)


def test_packed_sequences_do_not_see_each_other_and_the_last_goes_on(spec: Spec) -> None:
    layer, x = built(spec, dtype=torch.float64), numbers(2, 20, dtype=torch.float64)
    segments = torch.tensor([[0] * 7 + [1] + [2] * 12, [5] * 3 + [6] * 9 + [-1] * 8])
    found = whole(layer, x, segments)
    for row, cut in enumerate(((0, 7, 8, 20), (0, 3, 12, 20))):
        for start, end in pairwise(cut):
            alone = whole(layer, x[row : row + 1, start:end])
            torch.testing.assert_close(found[row, start:end], alone[0], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(in_pieces(layer, x, (6, 5, 9), segments), found, rtol=1e-9, atol=1e-9)


def test_the_engine_decodes_what_the_whole_text_gives(spec: Spec) -> None:
    model = decoder(spec, channel=False).double()
    assert leaks_of(model) == ()
    prompts = [[1, 2, 3], [4, 5, 6, 7, 8, 9], [9]]
    found = run_all(
        Engine(model, max_rows=2, prefill_chunk=2), [Request(tokens=tuple(p), max_tokens=9) for p in prompts]
    )
    with torch.no_grad():
        for prompt, tokens in zip(prompts, found, strict=True):
            logits = model(torch.tensor([prompt + tokens[:-1]]))[0, len(prompt) - 1 :]
            assert logits.argmax(-1).tolist() == tokens and max(tokens) < VOCAB


def test_states_fork_select_and_forget_all_or_nothing(spec: Spec) -> None:
    layer, x = built(spec, dtype=torch.float64), numbers(2, 9, dtype=torch.float64)
    context = Context(positions=torch.arange(9).expand(2, -1))
    _, state = layer(x, context, layer.init_state(2, 1))
    kept = state.fork()
    first, _ = layer(x, context, state)
    again, _ = layer(x[[1, 0]], context, kept.select([1, 0]))
    torch.testing.assert_close(again[[1, 0]], first)
    with pytest.raises(UnsupportedError):
        kept.trim([4, 9])
    kept.trim([0, 9])
    anew, _ = layer(x, context, kept)
    torch.testing.assert_close(anew[0], whole(layer, x)[0])
    torch.testing.assert_close(anew[1], first[1])


def test_every_weight_learns_and_it_compiles() -> None:
    for make in MIXERS.values():
        layer, x = built(make(), dtype=torch.float64), numbers(2, 12, dtype=torch.float64)
        whole(layer, x).square().sum().backward()
        assert all(item.grad is not None and item.grad.abs().max() > 0 for item in layer.parameters())


@pytest.mark.parametrize("surrogate", [Arctan(), Triangle()], ids=str)
def test_what_compilers_see_is_the_same_with_the_same_gradient(surrogate: Surrogate) -> None:
    x = numbers(2, 4, dtype=torch.float64).requires_grad_()
    layer = LeakyNeurons.Spec(leak=0.4, threshold=0.5, surrogate=surrogate).build()
    membrane, begins = torch.zeros(2, HIDDEN, dtype=torch.float64), torch.zeros(2, 4, dtype=torch.bool)
    begins[1, 2] = True
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    weights = numbers(2, 4, seed=3, dtype=torch.float64)
    found = []
    for call in (layer, compiled):
        spikes, after = call(x, membrane, begins)
        (gradient,) = torch.autograd.grad((spikes * weights).sum() + after.sum(), x)
        found.append((spikes, after, gradient))
    assert torch.equal(found[0][0], found[1][0])
    torch.testing.assert_close(found[0], found[1])


def test_all_tensors_are_named_by_the_spec() -> None:
    for make in MIXERS.values():
        paths = {path for path, _ in make().walk()}
        assert {name.rpartition(".")[0] for name, _ in make().build().named_parameters()} <= paths


def test_matrices_read_spikes_and_what_is_counted_is_what_happens() -> None:
    tokens, channels = (make() for make in MIXERS.values())
    block = TwoMixerBlock.Spec(mixer_norm=NoNorm.Spec(), time=tokens, channel_norm=NoNorm.Spec(), channel=channels)
    layer = block.build()
    x = numbers(1, 10)
    reads: list[tuple[Tensor, int]] = []
    for mixer in (layer.time, layer.channel):
        for name, part in mixer.named_children():
            if name in ("r", "k", "v", "o", "up", "down"):
                part.register_forward_hook(lambda m, i, o: reads.append((i[0].detach(), o.shape[-1])))
    torch.manual_seed(0)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=1.0)
    with recording(layer) as record:
        layer(x, Context(positions=torch.arange(10).unsqueeze(0)), None)
    assert len(reads) == 7 == record.binary_maps and record.real_maps == 0
    assert record.accumulates == sum(float(read.sum()) * width for read, width in reads)
    assert record.dense_operations - record.neuron_steps == sum(read.numel() * width for read, width in reads)
    assert record.multiply_accumulates == record.neuron_steps == 10 * (3 * HIDDEN + 40)
    assert record.joules == pytest.approx(1e-12 * (0.9 * record.accumulates + 4.6 * record.neuron_steps))
    assert 0 < record.rate < 1 and record.joules < record.dense_joules
    before = record.accumulates
    layer(x, Context(positions=torch.arange(10).unsqueeze(0)), None)
    assert record.accumulates == before, "nothing is counted after the block"


def test_impossible_specs_are_refused() -> None:
    spec = spiking_tokens(HIDDEN)
    for build in (
        lambda: LeakyNeurons.Spec(leak=0.0),
        lambda: LeakyNeurons.Spec(leak=1.5),
        lambda: LeakyNeurons.Spec(threshold=0.0),
        lambda: spec.replace("k", out_features=5),
        lambda: spec.replace("bonus", size=(5,)),
        lambda: spiking_channels(HIDDEN, 40).replace("up", out_features=5),
    ):
        with pytest.raises(ShapeError):
            build()
    assert isinstance(spec.build(), SpikingTokens)
