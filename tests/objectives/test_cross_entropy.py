"""Smoothing and z-loss against torch's own loss, finite differences and a slow loop; chunks, bytes and the old loss."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from almanac.core.batch import Tokens, pad_rows
from almanac.core.errors import UnsupportedError
from almanac.core.value import Value
from almanac.objectives.cross_entropy import PLAIN, CrossEntropy, cross_entropy_sums
from almanac.objectives.next_token import next_token, next_token_from_hidden
from almanac.train.criterion import NextToken

VOCAB, HIDDEN = 13, 5
FORMS = [PLAIN, CrossEntropy(smoothing=0.1), CrossEntropy(z=1e-2), CrossEntropy(smoothing=0.3, z=1e-3)]
every_form = pytest.mark.parametrize("form", FORMS, ids=["plain", "smooth", "z", "both"])


def rows(*lengths: int) -> Tokens:
    dice = torch.Generator().manual_seed(1)
    texts = [torch.randint(VOCAB, (length,), generator=dice).tolist() for length in lengths]
    return pad_rows(texts, [[True] * length for length in lengths], pad_id=0)


@every_form
def test_value_against_torch_and_a_loop(form: CrossEntropy) -> None:
    logits = 3 * torch.randn(40, VOCAB, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    targets = torch.arange(40) % VOCAB
    sums = cross_entropy_sums(logits, targets, form)
    size = torch.tensor([math.log(sum(map(math.exp, row))) for row in logits.tolist()], dtype=torch.float64)
    smooth = F.cross_entropy(logits, targets, reduction="sum", label_smoothing=form.smoothing)
    assert float(sums.loss) == pytest.approx(float(smooth) + form.z * float(size.square().sum()), rel=1e-12)
    assert float(sums.nll) == pytest.approx(float(F.cross_entropy(logits, targets, reduction="sum")), rel=1e-12)
    assert int(sums.correct) == int((logits.argmax(1) == targets).sum())


def test_plain_is_torchs_loss_to_the_bit() -> None:
    logits, targets = torch.randn(99, VOCAB), torch.arange(99) % VOCAB
    assert torch.equal(cross_entropy_sums(logits, targets).loss, F.cross_entropy(logits, targets, reduction="sum"))


def test_the_gradient_of_z_is_two_z_size_times_the_softmax() -> None:
    logits = torch.randn(6, VOCAB, dtype=torch.float64, requires_grad=True)
    targets = torch.arange(6)
    with_z, without = (cross_entropy_sums(logits, targets, CrossEntropy(z=z)).loss for z in (0.05, 0.0))
    (found,) = torch.autograd.grad(with_z - without, logits)
    plain = logits.detach()
    torch.testing.assert_close(found, 2 * 0.05 * plain.logsumexp(1, keepdim=True) * plain.softmax(1))


@every_form
@pytest.mark.parametrize("frozen", [True, False])
def test_chunks_give_the_loss_and_gradients_of_the_whole(form: CrossEntropy, frozen: bool) -> None:
    batch, head = rows(9, 4, 7), nn.Linear(HIDDEN, VOCAB).requires_grad_(not frozen)
    hidden = torch.randn(*batch.tokens.shape, HIDDEN)
    found: list[list[Tensor]] = []
    for chunked in (False, True):
        head.zero_grad()
        leaf = hidden.clone().requires_grad_()
        loss, metrics = (
            next_token_from_hidden(leaf, batch, logits=head, chunk_targets=4, form=form)
            if chunked
            else next_token(head(leaf), batch, form=form)
        )
        (3 * loss).backward()
        assert leaf.grad is not None
        gradients = [leaf.grad] if frozen else [leaf.grad, head.weight.grad, head.bias.grad]
        found.append([loss.detach(), metrics["nll"], metrics["correct"].float(), *gradients])
    for plain, ours in zip(*found, strict=True):
        torch.testing.assert_close(ours, plain, atol=1e-6, rtol=1e-6)


@every_form
def test_finite_differences(form: CrossEntropy) -> None:
    batch, head = rows(4, 3), nn.Linear(HIDDEN, VOCAB, dtype=torch.float64).requires_grad_(False)
    hidden = torch.randn(*batch.tokens.shape, HIDDEN, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda x: next_token_from_hidden(x, batch, logits=head, chunk_targets=3, form=form)[0], (hidden,)
    )


class Peak(torch.utils._python_dispatch.TorchDispatchMode):
    """The largest tensor that any operation of a block made, in bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.nbytes = 0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):  # type: ignore[no-untyped-def]
        result = function(*arguments, **(options or {}))
        for item in result if isinstance(result, tuple | list) else (result,):
            if isinstance(item, Tensor):
                self.nbytes = max(self.nbytes, item.nbytes)
        return result


@pytest.mark.parametrize("frozen", [True, False])
def test_no_operation_makes_more_logits_than_a_chunk(frozen: bool) -> None:
    """Counted in bytes, in forward and backward: 16 rows of logits instead of 511, while the plain way makes them all."""
    vocab, time, chunk = 1000, 512, 16
    batch = pad_rows([list(range(time))], [[True] * time], pad_id=0)
    head = nn.Linear(HIDDEN, vocab).requires_grad_(not frozen)
    made = []
    for chunked in (True, False):
        hidden = torch.randn(1, time, HIDDEN, requires_grad=True)
        with Peak() as peak:
            form = CrossEntropy(z=1e-4, smoothing=0.1)
            loss = (
                next_token_from_hidden(hidden, batch, logits=head, chunk_targets=chunk, form=form)[0]
                if chunked
                else next_token(head(hidden), batch, form=form)[0]
            )
            loss.backward()
        made.append(peak.nbytes)
    assert made[0] <= chunk * vocab * 4
    assert made[1] >= (time - 1) * vocab * 4


def test_smoothing_has_its_minimum_at_the_smoothed_target_and_z_pulls_the_size_to_zero() -> None:
    logits = torch.zeros(1, 4, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([logits], max_iter=200, tolerance_grad=1e-12, tolerance_change=1e-15)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = cross_entropy_sums(logits, torch.tensor([2]), CrossEntropy(smoothing=0.2, z=0.01)).loss
        loss.backward()
        return loss

    optimizer.step(closure)
    torch.testing.assert_close(
        logits.detach().softmax(1), torch.tensor([[0.05, 0.05, 0.85, 0.05]], dtype=torch.float64), atol=1e-5, rtol=0
    )
    assert abs(float(logits.detach().logsumexp(1))) < 1e-4


def test_a_criterion_carries_the_form_and_old_ones_are_as_they_were() -> None:
    form = NextToken(form=CrossEntropy(z=1e-4))
    assert Value.from_dict(form.to_dict()) == form
    assert "form" not in NextToken().to_dict()
    for wrong in ({"smoothing": 1.0}, {"smoothing": -0.1}, {"z": -1.0}, {"z": math.inf}):
        with pytest.raises(UnsupportedError):
            CrossEntropy(**wrong)
