"""Families that remember instead of looking back, and their hybrids, against transformers.

Of RWKV-6, RWKV-7 and RetNet transformers knows none: their layers are held against the papers' recurrences written out in
float64 (tests/nn/recurrent/test_matrix_memory.py).
"""

from __future__ import annotations

import json
import math
from operator import truediv
from typing import Any, ClassVar

import pytest
import torch
from oracle import largest_difference, quiet, watched
from parity import TIME, Cases, Parity, make, pair_of, tokens, translate

from almanac.core.errors import FileFormatError
from almanac.models.family import Fields, family_for
from almanac.models.mamba2 import read_limit
from almanac.nn.stack import Decoder

MAMBA2 = {"num_heads": 6, "head_dim": 16, "state_size": 5, "n_groups": 1}
JAMBA = {"attn_layer_period": 3, "attn_layer_offset": 1, "num_experts": 4, "mamba_d_state": 5}
ROUNDING = ("mamba", "mamba2", "falcon_mamba", "jamba", "rwkv")  # steps, decays and states in float32


class AfterBlocks(Parity):
    """Families whose list of hidden states in theirs begins after the first block, not before it."""

    rounds = ROUNDING

    def difference(self, theirs: Any, ours: Decoder) -> float:
        """Relative to the stream where that grows beyond 1 (to 20), else absolute."""
        row = tokens(2, TIME)
        with torch.no_grad(), quiet():
            reference = theirs(row, output_hidden_states=True)
            last = ours.hidden(row)[0]
        logits, left = watched(ours.layers, lambda: ours(row))
        mine, other = [logits, *left, last], [reference.logits, *reference.hidden_states]
        scales = [max(1.0, float(item.abs().max())) for item in other]
        assert len(mine) == len(other)
        return largest_difference(map(truediv, mine, scales), map(truediv, other, scales))


class TestStateSpaces(AfterBlocks):
    cases: ClassVar[Cases] = {
        "mamba": ("mamba", {"state_size": 5}),
        "mamba, untied, no bias of the convolution": (
            "mamba",
            {"tie_word_embeddings": False, "use_conv_bias": False, "conv_kernel": 3, "expand": 1},
        ),
        "mamba, another rank": ("mamba", {"time_step_rank": 7, "layer_norm_epsilon": 1e-3}),
        "falcon mamba": ("falcon_mamba", {"state_size": 5, "mixer_rms_eps": 1e-3}),
        "falcon mamba, untied": ("falcon_mamba", {"tie_word_embeddings": False, "conv_kernel": 2}),
        "mamba2": ("mamba2", MAMBA2),
        "mamba2, groups": ("mamba2", {**MAMBA2, "n_groups": 3, "chunk_size": 16, "tie_word_embeddings": True}),
        "mamba2, limited steps": ("mamba2", {**MAMBA2, "time_step_limit": [0.4, 1.5], "use_conv_bias": False}),
    }


class TestJamba(Parity):
    rounds = ROUNDING
    cases: ClassVar[Cases] = {
        "jamba": ("jamba", JAMBA),
        "jamba, other periods": (
            "jamba",
            {**JAMBA, "num_hidden_layers": 4, "attn_layer_period": 2, "attn_layer_offset": 0, "expert_layer_offset": 0},
        ),
        "jamba, one expert, tied": ("jamba", {**JAMBA, "num_experts": 1, "tie_word_embeddings": True}),
    }


class TestBiasedJamba(Parity):
    """As below."""

    rounds = ROUNDING
    pad = ("jamba",)
    cases: ClassVar[Cases] = {
        "jamba, biases": ("jamba", {**JAMBA, "mamba_proj_bias": True, "mamba_conv_bias": False, "mamba_dt_rank": 4}),
    }


class TestBiasedStateSpaces(AfterBlocks):
    """With biases of the maps their padding is not silent: it enters the convolution. Ours is as if there were none."""

    pad = ("mamba", "mamba2")
    cases: ClassVar[Cases] = {
        "mamba, biases": ("mamba", {"use_bias": True}),
        "mamba2, biases": ("mamba2", {**MAMBA2, "use_bias": True}),
    }


class TestRwkv(AfterBlocks):
    """Their padding is not masked at all."""

    pad = ("rwkv",)
    cases: ClassVar[Cases] = {
        "rwkv": ("rwkv", {}),
        "rwkv, other widths": ("rwkv", {"intermediate_size": 56, "layer_norm_epsilon": 1e-3}),
        "rwkv, tied, no halving": ("rwkv", {"tie_word_embeddings": True, "rescale_every": 0}),
    }


@pytest.mark.parametrize("every", [1, 2, 3])
def test_halving_the_stream_is_a_matter_of_epsilons(every: int) -> None:
    with quiet():
        theirs = make("rwkv", {"rescale_every": every, "layer_norm_epsilon": 0.1}, seed=every)
    ours = translate(theirs)  # before their first call, which halves the weights
    with torch.no_grad(), quiet():
        reference = theirs(tokens(2, TIME)).logits
    torch.testing.assert_close(ours(tokens(2, TIME)), reference, rtol=0, atol=1e-5)
    unscaled = family_for("rwkv").read(Fields({**json.loads(theirs.config.to_json_string()), "rescale_every": 0}))
    assert unscaled.layers[0].mixer_norm.epsilon == 0.1  # type: ignore[attr-defined]


def test_time_may_be_mixed_in_another_width() -> None:
    """Which their cache cannot hold."""
    with quiet():
        theirs = make("rwkv", {"attention_hidden_size": 32, "use_cache": False})
        reference = theirs(tokens(2, TIME)).logits
    torch.testing.assert_close(translate(theirs)(tokens(2, TIME)), reference, rtol=0, atol=1e-5)


def test_a_state_goes_on_where_theirs_does() -> None:
    """Decoding with our state gives their cached continuation, token by token (of one row: more they mix up)."""
    pair = pair_of("rwkv", "rwkv", "{}")
    row = tokens(1, 9)
    with torch.no_grad(), quiet():
        given = pair.theirs(row[:, :5], use_cache=True)
        _, state = pair.ours.hidden(row[:, :5], pair.ours.init_state(1, 1))
        kept = given.state
        for place in range(5, 9):
            given = pair.theirs(row[:, place : place + 1], state=kept, use_cache=True)
            kept = given.state
            hidden, state = pair.ours.hidden(row[:, place : place + 1], state)
            torch.testing.assert_close(pair.ours.logits(hidden), given.logits, rtol=0, atol=1e-5)


def test_limits_of_the_step_are_read_in_every_spelling() -> None:
    assert read_limit(Fields({"time_step_limit": [0.0, {"__float__": "Infinity"}]})) == (0.0, math.inf)
    assert read_limit(Fields({"time_step_limit": [0.1, math.inf]})) == (0.1, math.inf)
    assert read_limit(Fields({})) == (0.0, math.inf)
    with pytest.raises(FileFormatError, match="two numbers"):
        read_limit(Fields({"time_step_limit": [1.0]}))


def test_patterns_that_never_come_round_are_refused() -> None:
    with pytest.raises(FileFormatError, match="attn_layer_offset"):
        family_for("jamba").read(Fields({"attn_layer_period": 2, "attn_layer_offset": 2}))
    with pytest.raises(FileFormatError, match="expand times"):
        family_for("mamba2").read(Fields({"hidden_size": 48, "num_heads": 5, "head_dim": 16}))
