"""DPO against closed forms, finite differences, slow loops and the policy that it must end at."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from almanac.core.batch import Preference, Tokens, pad_rows
from almanac.core.errors import RequestError, ShapeError
from almanac.objectives.dpo import answer_logprobs, answer_logprobs_from_hidden, dpo, implicit_rewards

VOCAB, HIDDEN = 7, 5


def rows() -> Tokens:
    generator = torch.Generator().manual_seed(3)
    lengths, prompts = (6, 4, 9, 2), (2, 1, 5, 1)
    tokens = [torch.randint(0, VOCAB, (length,), generator=generator).tolist() for length in lengths]
    masks = [[at >= prompt for at in range(length)] for length, prompt in zip(lengths, prompts, strict=True)]
    return pad_rows(tokens, masks, pad_id=0)


def pairs(count: int, *, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return list(-10 * torch.rand(4, count, generator=generator, dtype=torch.float64))


def test_the_loss_by_hand() -> None:
    """One pair: the policy has moved 2 nats up on the chosen answer and 1 down on the rejected one."""
    policy = (torch.tensor([-3.0]), torch.tensor([-6.0]))
    reference = (torch.tensor([-5.0]), torch.tensor([-5.0]))
    loss, metrics = dpo(policy, reference, beta=0.5)
    assert float(loss) == pytest.approx(math.log1p(math.exp(-1.5)))
    assert {name: float(value) for name, value in metrics.items()} == {
        "margin": 1.5, "correct": 1.0, "chosen": 1.0, "rejected": -0.5,
    }  # fmt: skip


def test_log_2_at_the_reference_and_half_of_beta_each_way() -> None:
    chosen, rejected, *_ = pairs(5)
    chosen, rejected = chosen.requires_grad_(), rejected.requires_grad_()
    loss, metrics = dpo((chosen, rejected), (chosen, rejected), beta=0.2)  # the reference gets no gradient
    loss.backward()
    assert loss.item() == pytest.approx(math.log(2)) and int(metrics["correct"]) == 0
    assert chosen.grad is not None and rejected.grad is not None
    torch.testing.assert_close(chosen.grad, torch.full_like(chosen, -0.1 / 5))
    torch.testing.assert_close(rejected.grad, torch.full_like(rejected, 0.1 / 5))


def test_gradient_by_finite_differences() -> None:
    values = [item.requires_grad_() for item in pairs(4)]
    counts = torch.tensor([1.0, 3.0, 0.5, 2.0], dtype=torch.float64)

    def loss(a: Tensor, b: Tensor) -> Tensor:
        return dpo((a, b), (values[2], values[3]), beta=0.3, counts=counts)[0]

    assert torch.autograd.gradcheck(loss, (values[0], values[1]))


def test_gradient_is_weighed_by_how_wrong_the_implicit_reward_is() -> None:
    """Section 4 of the paper: -beta · sigmoid(r_l - r_w) on the chosen log-probability."""
    a, b, c, d = pairs(6, seed=1)
    a.requires_grad_()
    dpo((a, b), (c, d), beta=0.4)[0].backward()
    chosen, rejected = implicit_rewards((a.detach(), b), (c, d), beta=0.4)
    assert a.grad is not None
    torch.testing.assert_close(a.grad, -0.4 * (rejected - chosen).sigmoid() / 6)


def test_far_margins_stay_finite() -> None:
    policy = torch.tensor([-1e4, 0.0], requires_grad=True)
    loss, _ = dpo((policy, torch.tensor([0.0, -1e4])), (torch.zeros(2), torch.zeros(2)), beta=1.0)
    loss.backward()
    assert loss.item() == pytest.approx(5e3) and policy.grad is not None and bool(policy.grad.isfinite().all())


def test_counts_are_repeats_and_steps_can_be_cut() -> None:
    a, b, c, d = pairs(3)
    counted, metrics = dpo((a, b), (c, d), beta=0.1, counts=torch.tensor([2.0, 0.0, 1.0]))
    index = torch.tensor([0, 0, 2])
    repeated, same = dpo((a[index], b[index]), (c[index], d[index]), beta=0.1)
    assert float(counted) == pytest.approx(float(repeated))
    assert {name: float(value) for name, value in metrics.items()} == pytest.approx(
        {name: float(value) for name, value in same.items()}
    )
    whole = dpo((a, b), (c, d), beta=0.1)[0]
    parts = [dpo((a[s], b[s]), (c[s], d[s]), beta=0.1, normaliser=3)[0] for s in (slice(0, 1), slice(1, 3))]
    assert float(whole) == pytest.approx(float(sum(parts)))


def test_answers_are_summed_without_their_prompt() -> None:
    """Against a loop over tokens; what stands in prompt and padding changes nothing."""
    batch = rows()
    logits = torch.randn(*batch.tokens.shape, VOCAB, dtype=torch.float64)
    found = answer_logprobs(logits, batch)
    for row in range(4):
        answer = [at for at in range(batch.tokens.shape[1]) if batch.loss_mask[row, at]]
        slow = sum(float(logits[row, at - 1].log_softmax(0)[batch.tokens[row, at]]) for at in answer)
        assert float(found[row]) == pytest.approx(slow, abs=1e-12)
    stirred = logits.clone()
    stirred[:, :-1][~batch.loss_mask[:, 1:]] += 9 * torch.randn(VOCAB, dtype=torch.float64)
    torch.testing.assert_close(answer_logprobs(stirred, batch), found)


@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_from_hidden_equals_from_logits(chunk: int) -> None:
    batch, head = rows(), nn.Linear(HIDDEN, VOCAB, dtype=torch.float64)
    hidden = torch.randn(*batch.tokens.shape, HIDDEN, dtype=torch.float64)
    results = []
    for chunked in (False, True):
        head.zero_grad()
        leaf = hidden.clone().requires_grad_()
        found = (
            answer_logprobs_from_hidden(leaf, batch, logits=head, chunk_targets=chunk)
            if chunked
            else answer_logprobs(head(leaf), batch)
        )
        (found * torch.tensor([1.0, -2.0, 3.0, 0.5], dtype=torch.float64)).sum().backward()
        assert leaf.grad is not None and head.weight.grad is not None
        results.append((found.detach(), leaf.grad, head.weight.grad.clone()))
    for plain, ours in zip(*results, strict=True):
        torch.testing.assert_close(ours, plain)


def test_ends_at_the_closed_form() -> None:
    """Three answers, preferences as Bradley and Terry say: the minimum is π_ref · exp(r / beta), gradient zero."""
    reference = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64).log()
    reward, beta = torch.tensor([0.0, 1.0, -0.5], dtype=torch.float64), 0.7
    logits = (reference + reward / beta).requires_grad_()
    first, second = torch.tensor([[i, j] for i in range(3) for j in range(3) if i != j]).T
    policy = logits.log_softmax(0)
    loss, _ = dpo(
        (policy[first], policy[second]),
        (reference[first], reference[second]),
        beta=beta,
        counts=(reward[first] - reward[second]).sigmoid(),
    )
    (gradient,) = torch.autograd.grad(loss, logits, retain_graph=True)
    assert float(gradient.abs().max()) < 1e-12
    shifted, _ = dpo(
        (policy[second], policy[first]),
        (reference[second], reference[first]),
        beta=beta,
        counts=(reward[first] - reward[second]).sigmoid(),
    )
    assert float(torch.autograd.grad(shifted, logits)[0].abs().max()) > 1e-2  # with the pairs swapped it is not


def test_what_cannot_be_is_refused() -> None:
    a, b, c, d = pairs(3)
    with pytest.raises(ShapeError, match="shapes"):
        dpo((a, b[:2]), (c, d), beta=0.1)
    with pytest.raises(RequestError, match="beta"):
        dpo((a, b), (c, d), beta=0.0)
    with pytest.raises(ShapeError, match="0 pairs"):
        dpo((a[:0], b[:0]), (c[:0], d[:0]), beta=0.1)
    with pytest.raises(ShapeError, match="Logits"):
        answer_logprobs(torch.zeros(1, 2, VOCAB), rows())
    with pytest.raises(ShapeError, match="Hidden"):
        answer_logprobs_from_hidden(torch.zeros(1, 2, HIDDEN), rows(), logits=nn.Linear(HIDDEN, VOCAB))
    with pytest.raises(ShapeError, match="Preference"):
        Preference(rows(), torch.zeros(3))
    assert Preference(rows(), torch.zeros(4)).num_pairs == 2
