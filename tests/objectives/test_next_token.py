"""The next-token loss against closed forms, finite differences and its own unchunked form."""

from __future__ import annotations

import gc
import math
import weakref

import pytest
import torch
from torch import Tensor, nn

from almanac.core.batch import Tokens, pad_rows
from almanac.core.errors import ShapeError
from almanac.objectives.next_token import alignment, next_token, next_token_from_hidden

VOCAB, HIDDEN = 11, 6
LENGTHS = (9, 3, 5, 7, 4, 8, 6, 5)
SIZES = (1, 2, 3, 4, 5, 6, 7, 8)
"""Rows of a micro-batch: eight cuts of one step of eight rows, some of them uneven."""


def uneven_batch(lengths: tuple[int, ...] = LENGTHS, *, seed: int = 0) -> Tokens:
    generator = torch.Generator().manual_seed(seed)
    rows = [torch.randint(0, VOCAB, (length,), generator=generator).tolist() for length in lengths]
    masks = [(torch.rand(length, generator=generator) < 0.6).tolist() for length in lengths]
    for mask in masks:
        mask[1] = True
    return pad_rows(rows, masks, pad_id=0)


def make_head(dtype: torch.dtype, *, frozen: bool) -> nn.Linear:
    head = nn.Linear(HIDDEN, VOCAB, dtype=dtype)
    return head.requires_grad_(not frozen)


def test_uniform_logits_cost_log_of_vocab() -> None:
    batch = uneven_batch()
    loss, metrics = next_token(torch.zeros(*batch.tokens.shape, VOCAB), batch)
    assert float(loss) == pytest.approx(math.log(VOCAB), abs=1e-6)
    assert float(metrics["nll"]) == pytest.approx(math.log(VOCAB) * batch.num_targets, rel=1e-6)


def test_by_hand() -> None:
    """Two targets: p(token 1 | position 0) = 3/4 and p(token 2 | position 1) = 1/2."""
    batch = pad_rows([[0, 1, 2, 0]], [[True, True, True, False]], pad_id=0)
    logits = torch.zeros(1, 4, 3)
    logits[0, 0] = torch.tensor([0.0, math.log(6), 0.0])
    logits[0, 1] = torch.tensor([-30.0, 0.0, 0.0])
    logits[0, 2] = torch.tensor([9.0, -9.0, 3.0])  # predicts the last token, which is no target
    loss, metrics = next_token(logits, batch)
    assert float(loss) == pytest.approx((math.log(4 / 3) + math.log(2)) / 2, abs=1e-6)
    assert int(metrics["correct"]) == 1


def test_only_the_position_before_a_target_gets_a_gradient() -> None:
    batch = uneven_batch()
    logits = torch.randn(*batch.tokens.shape, VOCAB, requires_grad=True)
    next_token(logits, batch)[0].backward()
    assert logits.grad is not None
    touched = logits.grad.abs().sum(-1) > 0
    assert torch.equal(touched[:, :-1], batch.loss_mask[:, 1:])
    assert not touched[:, -1].any()


def test_gradient_is_softmax_minus_one_hot() -> None:
    batch = uneven_batch()
    logits = torch.randn(*batch.tokens.shape, VOCAB, dtype=torch.float64, requires_grad=True)
    next_token(logits, batch, normaliser=10.0)[0].backward()
    before, targets = alignment(batch)
    expected = torch.zeros(batch.tokens.numel(), VOCAB, dtype=torch.float64)
    expected[before] = logits.detach().flatten(0, 1)[before].softmax(-1) - nn.functional.one_hot(targets, VOCAB)
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad.flatten(0, 1), expected / 10.0, atol=1e-15, rtol=0)


@pytest.mark.parametrize("frozen", [True, False])
def test_finite_differences(frozen: bool) -> None:
    batch = uneven_batch()
    head = make_head(torch.float64, frozen=frozen)
    hidden = torch.randn(*batch.tokens.shape, HIDDEN, dtype=torch.float64, requires_grad=True)
    inputs = (hidden, *(() if frozen else tuple(head.parameters())))

    def loss(*tensors: Tensor) -> Tensor:
        return next_token_from_hidden(tensors[0], batch, logits=head, chunk_targets=3)[0]

    assert torch.autograd.gradcheck(loss, inputs)


@pytest.mark.parametrize("chunk", [1, 4, 1000])
@pytest.mark.parametrize("frozen", [True, False])
def test_chunked_equals_plain(frozen: bool, chunk: int) -> None:
    batch = uneven_batch()
    head = make_head(torch.float32, frozen=frozen)
    hidden = torch.randn(*batch.tokens.shape, HIDDEN)
    results = []
    for chunked in (False, True):
        head.zero_grad()
        leaf = hidden.clone().requires_grad_()
        loss, metrics = (
            next_token_from_hidden(leaf, batch, logits=head, chunk_targets=chunk)
            if chunked
            else next_token(head(leaf), batch)
        )
        (2 * loss).backward()  # a factor, so that a backward that ignores what comes from above is found out
        results.append((loss, metrics["nll"], metrics["correct"].float(), leaf.grad, head.weight.grad, head.bias.grad))
    for plain, ours in zip(*results, strict=True):
        assert (plain is None) == (ours is None)
        if plain is not None and ours is not None:
            torch.testing.assert_close(ours, plain, atol=1e-6, rtol=1e-6)


class Kept:
    """What autograd keeps for backward, held by nothing but the graph."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


@pytest.mark.parametrize("frozen", [True, False])
def test_chunks_bound_what_exists_at_once(frozen: bool) -> None:
    """No call asks for more logits than a chunk, in forward or in backward, and none lives from one to the other."""
    batch = uneven_batch((40,) * 4)
    head, asked, kept = make_head(torch.float32, frozen=frozen), [], weakref.WeakSet()
    hidden = torch.randn(*batch.tokens.shape, HIDDEN, requires_grad=True)

    def logits(x: Tensor) -> Tensor:
        asked.append(x.shape[0])
        return head(x)

    def pack(tensor: Tensor) -> Kept:
        held = Kept(tensor)
        kept.add(held)
        return held

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda held: held.tensor):
        loss, _ = next_token_from_hidden(hidden, batch, logits=logits, chunk_targets=8)
    gc.collect()
    assert kept and not [held.tensor.shape for held in kept if held.tensor.shape[1:] == (VOCAB,)]
    loss.backward()
    assert max(asked) == 8
    assert sum(asked) == batch.num_targets  # and no logit is computed twice
    with torch.no_grad():
        torch.testing.assert_close(
            next_token_from_hidden(hidden, batch, logits=head)[0], loss.detach(), atol=1e-6, rtol=0
        )


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
@pytest.mark.parametrize("rows", SIZES)
def test_cutting_a_step_does_not_change_its_gradient(rows: int, dtype: torch.dtype, tolerance: float) -> None:
    """R11: with the step's normaliser, any cut into micro-batches gives the gradient of the whole."""
    embed, head = nn.Embedding(VOCAB, HIDDEN, dtype=dtype), make_head(dtype, frozen=False)

    def gradients(size: int, *, per_micro_batch: bool = False) -> list[Tensor]:
        embed.zero_grad()
        head.zero_grad()
        for seed, start in enumerate(range(0, len(LENGTHS), size)):
            lengths = LENGTHS[start : start + size]
            pieces = [uneven_batch((length,), seed=100 + start + at) for at, length in enumerate(lengths)]
            batch = pad_rows(
                [piece.tokens[0].tolist() for piece in pieces],
                [piece.loss_mask[0].tolist() for piece in pieces],
                pad_id=seed,
            )
            normaliser = None if per_micro_batch else total
            next_token_from_hidden(embed(batch.tokens), batch, logits=head, normaliser=normaliser)[0].backward()
        return [parameter.grad.clone() for module in (embed, head) for parameter in module.parameters()]

    total = sum(uneven_batch((length,), seed=100 + at).num_targets for at, length in enumerate(LENGTHS))
    whole, cut = gradients(len(LENGTHS)), gradients(rows)
    for expected, got in zip(whole, cut, strict=True):
        assert (got - expected).abs().max() <= tolerance
    if rows == 1 and dtype == torch.float32:  # the fault of incident 13 would be seen
        wrong = gradients(rows, per_micro_batch=True)
        assert max(float((a - b / len(LENGTHS)).abs().max()) for a, b in zip(whole, wrong, strict=True)) > 1e-3


def test_a_batch_without_targets_adds_nothing() -> None:
    batch = pad_rows([[1, 2, 3]], [[False] * 3], pad_id=0)
    hidden = torch.randn(1, 3, HIDDEN, requires_grad=True)
    loss, _ = next_token_from_hidden(hidden, batch, logits=make_head(torch.float32, frozen=True), normaliser=5)
    loss.backward()
    assert loss.item() == 0 and not hidden.grad.any()
    with pytest.raises(ShapeError, match="0 targets"):
        next_token_from_hidden(hidden, batch, logits=make_head(torch.float32, frozen=True))


def test_shapes_must_fit() -> None:
    batch = uneven_batch()
    with pytest.raises(ShapeError, match="Logits"):
        next_token(torch.zeros(1, 2, VOCAB), batch)
    with pytest.raises(ShapeError, match="Hidden"):
        next_token_from_hidden(torch.zeros(1, 2, HIDDEN), batch, logits=make_head(torch.float32, frozen=True))


def test_low_precision_logits_are_summed_in_float32() -> None:
    batch = uneven_batch((200,) * 3)
    logits = torch.randn(*batch.tokens.shape, VOCAB).bfloat16()
    assert next_token(logits, batch)[0].dtype == torch.float32
    torch.testing.assert_close(next_token(logits, batch)[0], next_token(logits.float(), batch)[0], atol=1e-6, rtol=0)
