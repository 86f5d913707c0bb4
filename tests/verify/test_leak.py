"""The leak test passes what is causal and finds what is not, however small and wherever it is planted."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import toys
from nn.recurrent.mixing import HIDDEN, decoder, spec_of
from torch import Tensor, nn

from almanac.adapt.lora import Lora
from almanac.core.errors import UnsupportedError
from almanac.nn.attention.full import attention
from almanac.nn.attention.masks import Causal
from almanac.nn.encoder import Encoder
from almanac.nn.frontier.spiking import spiking_channels, spiking_tokens
from almanac.nn.recurrent import scan as scan_file
from almanac.nn.recurrent.mamba import mamba
from almanac.nn.recurrent.s4d import s4d
from almanac.nn.stack import Decoder
from almanac.verify.leak import Leak, leaks_of, leaks_of_spec, may_see, packed, plain, sees_no_future, told

SOUND = {
    "attention": lambda: attention(HIDDEN, num_heads=2),
    "mamba": lambda: mamba(HIDDEN, num_states=3),
    "s4d": lambda: s4d(HIDDEN, num_states=3),
    "spikes": lambda: spiking_tokens(HIDDEN),
    "spiking channels": lambda: spiking_channels(HIDDEN, 2 * HIDDEN),
}


def causal() -> Decoder:
    return decoder(attention(HIDDEN, num_heads=2), channel=True)


def ways(leaks: tuple[Leak, ...]) -> set[tuple[str, str]]:
    return {(leak.way, leak.case) for leak in leaks}


@pytest.mark.parametrize("name", SOUND)
def test_sound_mixers_pass(name: str) -> None:
    assert leaks_of_spec(spec_of(SOUND[name](), channel=False)) == ()


@pytest.mark.parametrize("name", ["llama", "mistral", "qwen2", "gpt2", "plain"])
def test_families_pass_and_are_left_as_they_were(name: str) -> None:
    model = toys.toy(name, Lora(rank=2)).train()
    before = torch.random.get_rng_state()
    assert leaks_of(model) == ()
    assert model.training and torch.equal(torch.random.get_rng_state(), before)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_mask_that_is_one_off_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Causal, "is_plain_causal", lambda self, length: False)
    monkeypatch.setattr(Causal, "allowed", lambda self, queries, keys: keys <= queries + 1)
    found = leaks_of(causal())
    assert {("gradient", "future"), ("perturbation", "future")} <= ways(found)
    assert all(leak.reader < leak.source <= leak.reader + 2 for leak in found), "one for each of two layers"
    assert leaks_of_spec(spec_of(attention(HIDDEN, num_heads=2), channel=True))


def test_packed_texts_that_see_each_other_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    sound = Decoder.hidden

    def blind(self: Decoder, tokens: Tensor, state: Any = None, context: Any = None) -> Any:
        if context is not None:
            context = plain(tokens.shape[1])
        return sound(self, tokens, state, context)

    monkeypatch.setattr(Decoder, "hidden", blind)
    assert ways(leaks_of(causal())) == {("gradient", "packed"), ("perturbation", "packed")}


def test_a_recurrence_that_runs_on_into_the_next_text_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("almanac.nn.recurrent.mamba.starts", lambda segments: None)
    assert {case for _, case in ways(leaks_of(decoder(mamba(HIDDEN, num_states=3), channel=False)))} >= {"packed"}


class Mixed(nn.Module):
    """A module after which every output also holds a little of something else."""

    def __init__(self, inner: nn.Module, added: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.inner, self.added = inner, added

    def forward(self, x: Tensor) -> Tensor:
        y = self.inner(x)
        return y + self.added(y)


@pytest.mark.parametrize(
    ("added", "way"),
    [
        (lambda y: 1e-6 * y.mean(1, keepdim=True), "gradient"),  # a norm over the whole text
        (lambda y: (y > y.flatten(1).median(1).values[:, None, None]).to(y), "perturbation"),  # a decision over it
        (
            lambda y: 1e-6 * torch.nn.functional.pad(y[:, 64:65], (0, 0, 63, y.shape[1] - 64)),
            "gradient",
        ),  # a chunk's seam
    ],
)
def test_small_and_discrete_leaks_are_found(added: Callable[[Tensor], Tensor], way: str) -> None:
    model = causal().double()
    model.norm = Mixed(model.norm, added)
    assert (way, "future") in ways(leaks_of(model))


def test_rows_that_depend_on_each_other_are_found() -> None:
    model = causal().double()
    model.norm = Mixed(model.norm, lambda y: 1e-3 * y.amax(0, keepdim=True))
    found = leaks_of(model)
    assert ("perturbation", "rows") in ways(found)
    assert "another row" in told([leak for leak in found if leak.case == "rows"])


def test_a_fault_is_a_finding_for_preflight() -> None:
    model = causal().double()
    assert sees_no_future(model).ok
    model.norm = Mixed(model.norm, lambda y: 0.1 * y.roll(-1, dims=1))
    finding = sees_no_future(model)
    assert not finding.ok and finding.check == "leaks" and "before it" in finding.detail and "more" in finding.detail


def test_a_long_scan_that_loses_its_order_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    sound = scan_file.recur

    def reversed_chunk(decay: Tensor, inflow: Tensor, initial: Tensor, chunk: int) -> Tensor:
        return sound(decay, inflow.flip(0) if len(inflow) > 64 else inflow, initial, chunk)

    monkeypatch.setattr(scan_file, "recur", reversed_chunk)
    assert leaks_of(decoder(mamba(HIDDEN, num_states=3), channel=False))


def test_what_may_be_seen_is_the_past_of_the_same_text() -> None:
    allowed = may_see(packed(81))
    context = packed(81)
    assert context.segments is not None
    for reader in range(81):
        for source in range(81):
            same = bool(context.segments[0, reader] == context.segments[0, source])
            assert bool(allowed[reader, source]) == (same and source <= reader)
    assert context.segments[0, -1] == -1 and context.positions[0, 5] == 0
    assert int(may_see(plain(4)).sum()) == 10


def test_specs_that_are_no_decoders_or_too_large_are_refused() -> None:
    norm = spec_of(attention(HIDDEN, num_heads=2), channel=True).norm
    with pytest.raises(UnsupportedError, match="no decoder"):
        leaks_of_spec(Encoder.Spec(embed=toys.plain().embed, layers=(norm,), max_length=4))
    huge = toys.plain().replace("layers.0.channel.{up,down}", in_features=1 << 15, out_features=1 << 15)
    with pytest.raises(UnsupportedError, match="float64"):
        leaks_of_spec(huge)


def test_not_a_number_is_a_leak() -> None:
    model = causal().double()
    model.norm = Mixed(model.norm, lambda y: y * math.nan)
    assert leaks_of(model)
