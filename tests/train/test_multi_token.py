"""Several tokens ahead: the loss against a loop, the borders of sequences, the decoder that stays what it was, learning."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
import toys
from torch import Tensor, nn
from train import small_run

from almanac.core.batch import Tokens
from almanac.core.errors import ShapeError
from almanac.core.technique import initialise
from almanac.data.collate import Row
from almanac.data.pack import pack_rows
from almanac.nn.future_heads import ForesightDecoder, with_future
from almanac.objectives.multi_token import alignment_ahead, multi_token
from almanac.objectives.next_token import alignment, next_token_from_hidden
from almanac.train.criterion import context_of
from almanac.train.events.event import Event, StepDone
from almanac.train.loop import train
from almanac.train.multi_token import MultiToken

VOCAB, HIDDEN = 11, 5


def packed() -> Tokens:
    dice = torch.Generator().manual_seed(0)
    rows = [torch.randint(VOCAB, (length,), generator=dice).tolist() for length in (7, 5, 3, 1, 9)]
    masks = [[at % 4 != 2 for at in range(len(row))] for row in rows]
    return pack_rows(rows, masks, width=12, pad_id=0)


@pytest.mark.parametrize("heads", [1, 2, 4])
def test_the_loss_and_its_gradients_are_those_of_a_loop(heads: int) -> None:
    batch, head = packed(), nn.Linear(HIDDEN, VOCAB, dtype=torch.float64)
    dice = torch.Generator().manual_seed(1)
    hiddens = [torch.randn(*batch.tokens.shape, HIDDEN, generator=dice, dtype=torch.float64) for _ in range(heads)]
    leaves = [hidden.clone().requires_grad_() for hidden in hiddens]
    loss, metrics = multi_token(leaves, batch, logits=head, normaliser=7.0, chunk_targets=3)
    loss.backward()
    slow = [hidden.clone().requires_grad_() for hidden in hiddens]
    losses: list[list[Tensor]] = [[] for _ in range(heads)]
    for b in range(batch.tokens.shape[0]):
        for t in range(batch.tokens.shape[1]):
            for i in range(heads):
                source = t - i - 1
                if batch.loss_mask[b, t] and source >= 0 and batch.segments[b, source] == batch.segments[b, t]:
                    losses[i].append(F.cross_entropy(head(slow[i][b, source]), batch.tokens[b, t]))
    total = torch.stack([loss for each in losses for loss in each]).sum() / 7
    total.backward()
    torch.testing.assert_close(loss, total)
    for ours, theirs in zip(leaves, slow, strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)
    for i in range(1, heads):
        torch.testing.assert_close(metrics[f"nll_{i + 1}"], torch.stack(losses[i]).sum().detach())


def test_one_head_is_next_token_prediction() -> None:
    batch, head = packed(), nn.Linear(HIDDEN, VOCAB)
    hidden = torch.randn(*batch.tokens.shape, HIDDEN)
    ours, plain = multi_token([hidden], batch, logits=head), next_token_from_hidden(hidden, batch, logits=head)
    assert torch.equal(ours[0], plain[0]) and torch.equal(ours[1]["nll"], plain[1]["nll"])
    assert all(torch.equal(a, b) for a, b in zip(alignment_ahead(batch, 1), alignment(batch), strict=True))
    for wrong in ([], [hidden[:1]]):
        with pytest.raises(ShapeError):
            multi_token(wrong, batch, logits=head)


def foresight(count: int) -> ForesightDecoder:
    model = initialise(toys.with_std(with_future(toys.plain(), count)).build(), seed=0)
    assert isinstance(model, ForesightDecoder)
    return model


def test_heads_stand_in_the_place_of_the_last_layer() -> None:
    """Head i equals a decoder whose last layer it is; the decoder itself is not changed by being looked through."""
    model, batch = foresight(3).eval(), packed()
    context = context_of(batch)
    hiddens = model.hiddens(batch.tokens, context)
    assert len(hiddens) == 3 and not model.decoder.layers[-1].chain
    torch.testing.assert_close(hiddens[0], model.decoder.hidden(batch.tokens, None, context)[0], rtol=0, atol=0)
    torch.testing.assert_close(model(batch.tokens, context), model.logits(hiddens[0]))
    for head, hidden in zip(model.heads, hiddens[1:], strict=True):
        twin = toys.plain().build()
        twin.load_state_dict(model.decoder.state_dict())
        twin.layers[-1].load_state_dict(head.state_dict())
        torch.testing.assert_close(twin.eval().hidden(batch.tokens, None, context)[0], hidden)
    assert {name.removeprefix("decoder.") for name in model.state_dict() if name.startswith("decoder.")} == set(
        toys.plain().build().state_dict()
    )


def test_it_learns_what_lies_ahead() -> None:
    model, losses = foresight(2), list[tuple[float, float]]()
    rows = [Row(row.tokens, (False, *(True,) * (len(row) - 1))) for row in small_run.doubling_rows()]
    chosen = small_run.settings(steps=60)

    def listener(event: Event) -> None:
        if isinstance(event, StepDone):
            losses.append((event.metrics["nll"], event.metrics["nll_2"]))

    train(model, chosen.batches(rows), settings=chosen, criterion=MultiToken(), listeners=(listener,))
    assert losses[-1][0] < 0.75 * losses[0][0] and losses[-1][1] < 0.75 * losses[0][1]
