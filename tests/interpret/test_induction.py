"""An induction head built by hand scores 1; what is none does not."""

from __future__ import annotations

import math

import pytest
import torch
import toys

from almanac.core.errors import SelectionError
from almanac.interpret.induction import copying_scores, follows_earlier, prefix_matching, prefix_matching_scores
from almanac.nn.attention.full import attention
from almanac.nn.embedding import Embedding
from almanac.nn.head import Head
from almanac.nn.linear import Linear
from almanac.nn.mixer_block import MixerBlock
from almanac.nn.norm import RMSNorm
from almanac.nn.positions.rope import Rope
from almanac.nn.stack import Decoder

VOCAB, SHARP = 10, 40.0
HIDDEN, SIZE = 3 * VOCAB, 2 + VOCAB  # parts: the token, the one before, the prediction; a head's first two dims rotate


def by_hand(*, copies: float = 1.0) -> Decoder:
    """Layer 0 writes the previous token beside each token; layer 1 looks for it there and copies the token found."""
    norm = RMSNorm.Spec(hidden=HIDDEN)
    mixer = attention(HIDDEN, num_heads=1, head_dim=SIZE, bias=(True, False), position=Rope.Spec(rotary_dim=2))
    model = Decoder.Spec(
        embed=Embedding.Spec(vocab_size=VOCAB, hidden=HIDDEN),
        layers=(MixerBlock.Spec(mixer_norm=norm, mixer=mixer),) * 2,
        norm=norm,
        head=Head.Spec(projection=Linear.Spec(in_features=HIDDEN, out_features=VOCAB)),
        context_length=64,
    ).build()
    eye = torch.eye(VOCAB)
    token, before, said = (slice(part * VOCAB, (part + 1) * VOCAB) for part in range(3))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        for module in (model.norm, *(layer.mixer_norm for layer in model.layers)):
            module.weight.fill_(1.0)
        model.embed.weight[:, token] = eye
        first, second = model.layers[0].mixer, model.layers[1].mixer
        first.k.bias[0] = SHARP  # rotated by its position; the query by one less, so that the last but one fits best
        first.q.bias[:2] = torch.tensor([math.cos(-1.0), math.sin(-1.0)]) * SHARP
        first.v.weight[2:, token] = eye
        first.o.weight[before, 2:] = eye / math.sqrt(HIDDEN)  # the norm of one token's vector is taken back
        second.q.weight[2:, token] = eye * SHARP
        second.k.weight[2:, before] = eye * SHARP
        second.v.weight[2:, token] = eye
        second.o.weight[said, 2:] = eye * copies
        model.head.projection.weight[:, said] = eye
    return model.eval()


def repeated(seed: int = 0) -> torch.Tensor:
    """A first token, then twice the same eight in one order, so that what follows is always known: int64 [1, 17]."""
    half = torch.randperm(8, generator=torch.Generator().manual_seed(seed))
    return torch.cat([torch.tensor([9]), half, half])[None]


def test_an_induction_head_built_by_hand_scores_one() -> None:
    model, tokens = by_hand(), repeated()
    scores = prefix_matching_scores(model, tokens)
    assert float(scores["layers.1.mixer"][0]) == pytest.approx(1.0, abs=1e-4)
    assert float(scores["layers.0.mixer"][0]) == pytest.approx(0.0, abs=1e-4)
    assert torch.equal(model(tokens)[0, 9:16].argmax(-1), tokens[0, 10:]), "and it does induction"


def test_copying_is_told_from_suppressing() -> None:
    model = by_hand()
    model.head.projection.weight.data[:, :VOCAB] = torch.eye(VOCAB)  # so that what is read is also written
    model.layers[1].mixer.o.weight.data[:VOCAB, 2:] = torch.eye(VOCAB)
    assert float(copying_scores(model)["layers.1.mixer"][0]) == pytest.approx(1.0)
    model.layers[1].mixer.o.weight.data.neg_()
    assert float(copying_scores(model)["layers.1.mixer"][0]) == pytest.approx(-1.0)
    assert float(copying_scores(by_hand(copies=0.0))["layers.1.mixer"][0]) == 0.0


@pytest.mark.parametrize("name", ["llama", "plain"])
def test_copying_is_that_of_the_whole_circuit(name: str) -> None:
    """The eigenvalues of the [vocab, vocab] matrix itself, which is never built otherwise."""
    model = toys.toy(name)
    layer = model.layers[1].mixer
    unembed = model.embed.weight if name == "llama" else model.head.projection.weight
    scores = copying_scores(model)["layers.1.mixer"]
    assert len(scores) == layer.num_heads
    for head in range(layer.num_heads):
        own = head // (layer.num_heads // layer.num_kv_heads)
        value = layer.v.weight[own * layer.head_dim : (own + 1) * layer.head_dim].double()
        output = layer.o.weight[:, head * layer.head_dim : (head + 1) * layer.head_dim].double()
        found = torch.linalg.eigvals((unembed.double() @ output @ value @ model.embed.weight.double().T).detach())
        assert float(scores[head]) == pytest.approx(float(found.sum().real / found.abs().sum()), abs=1e-4)


def test_which_keys_follow_an_earlier_occurrence() -> None:
    tokens = torch.tensor([[5, 7, 5, 5, 7]])
    wanted = {(2, 1), (3, 1), (4, 2)}  # 7 after the first 5, twice; what followed the first 7; never oneself
    assert {(q, k) for _, q, k in follows_earlier(tokens).nonzero().tolist()} == wanted


def test_prefix_matching_against_a_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, 6, (3, 12), generator=generator)
    patterns = torch.rand(3, 2, 12, 12, generator=generator).tril()
    patterns = patterns / patterns.sum(-1, keepdim=True)
    paid: list[float] = []
    for row in range(3):
        for query in range(12):
            keys = [key for key in range(1, query) if tokens[row, key - 1] == tokens[row, query]]
            paid += [sum(float(patterns[row, 1, query, key]) for key in keys)] if keys else []
    assert float(prefix_matching(patterns, tokens)[1]) == pytest.approx(sum(paid) / len(paid), abs=1e-6)


def test_a_text_without_repeats_has_no_score() -> None:
    with pytest.raises(SelectionError, match="repeats"):
        prefix_matching(torch.ones(1, 1, 4, 4), torch.arange(4)[None])


def test_a_block_that_only_mixes_decodes_as_it_reads() -> None:
    """Cached and uncached logits of a stack without channels agree, and the residual stream passes through."""
    model, tokens = by_hand(), repeated(1)
    with torch.no_grad():
        straight = model(tokens)
        state, parts = model.init_state(1, 17), []
        for start in range(17):
            hidden, state = model.hidden(tokens[:, start : start + 1], state)
            parts.append(model.logits(hidden))
        assert torch.allclose(torch.cat(parts, dim=1), straight, atol=1e-4)
        silent = by_hand(copies=0.0)
        assert torch.equal(silent.hidden(tokens)[0][..., 2 * VOCAB :], torch.zeros(1, 17, VOCAB))
