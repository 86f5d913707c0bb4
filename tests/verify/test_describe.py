"""The figures of a description against the real thing: a built model, torch's counter, the states themselves."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import toys
from nn.recurrent.mixing import HIDDEN, spec_of
from torch.nn.attention import SDPBackend, sdpa_kernel

from almanac.core.batch import pad_rows
from almanac.models.encoder_decoder_family import encoder_decoder_families
from almanac.models.family import Fields, encoder_families
from almanac.nn.attention.full import attention
from almanac.nn.channel.moe.experts import Experts
from almanac.nn.channel.moe.mixture import gated_experts
from almanac.nn.encoder import Encoder
from almanac.nn.recurrent.mamba import mamba
from almanac.verify.describe import counted, describe
from almanac.verify.forecast import saved_bytes
from almanac.verify.spec_tree import lines, numbers, outline, parameters_of

NAMES = sorted(toys.specs())
TIME = 48
TOLERANCE = 0.01  # of operations
WITH_EXPERTS = (
    0.05  # on a processor a group of few rows is filled up with rows of zeros, which the device of shapes leaves out
)


@pytest.mark.parametrize("name", NAMES)
def test_figures_are_those_of_the_model_itself(name: str) -> None:
    spec, model = toys.specs()[name], toys.toy(name).double()  # whose experts' products torch does not count
    found = describe(spec, lengths=(16, TIME, 10**6), dtype=torch.float64)
    assert found.notes == ()
    assert found.parameters.total == sum(parameter.numel() for parameter in model.parameters())
    assert found.weights_bytes == sum(parameter.nbytes for parameter in model.parameters())
    assert sorted(found.operations) == [16, TIME, spec.context_length], "no text is longer than the context"
    for time in (16, TIME):
        tokens = toys.tokens(1, time)
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
            real, _ = counted(lambda tokens=tokens: model(tokens), model)
            tolerance = WITH_EXPERTS if any(isinstance(leaf, Experts) for leaf in model.modules()) else TOLERANCE
            assert found.operations[time] == pytest.approx(real / time, rel=tolerance)
            _, state = model.hidden(tokens, model.init_state(1, time))
        assert state is not None
        assert found.state_bytes[time] == state.nbytes
    assert found.recurrent == (found.state_bytes[16] == found.state_bytes[TIME])


def test_operations_have_a_closed_form_for_a_transformer() -> None:
    """Two for each weight of a map, and for each pair of tokens two products as wide as all heads."""
    spec = toys.specs()["llama"]
    model = toys.toy("llama")
    maps = sum(parameter.numel() for parameter in model.parameters() if parameter.dim() == 2)  # the table is the head
    expected = 2 * maps + toys.LAYERS * 4 * toys.HIDDEN * 4096
    long = spec.with_(context_length=4096)
    assert describe(long, lengths=(4096,)).operations[4096] == pytest.approx(expected, rel=1e-9)


def test_experts_count_by_how_many_a_token_meets() -> None:
    spec = spec_of(attention(HIDDEN, num_heads=2), channel=True).replace(
        "layers.*", channel=gated_experts(HIDDEN, 32, num_experts=8, num_chosen=2, shared=16)
    )
    found = describe(spec, lengths=(64,))
    expert = 3 * HIDDEN * 32
    assert found.parameters.total - found.parameters.active == 2 * 6 * expert
    dense = describe(spec.replace("layers.*.channel.router", num_chosen=8), lengths=(64,))
    assert dense.parameters.active == dense.parameters.total
    assert dense.operations[64] - found.operations[64] == pytest.approx(2 * 2 * 6 * expert, rel=0.02)


def test_a_recurrent_state_is_constant_and_a_hybrid_grows_by_its_attention() -> None:
    pure = spec_of(mamba(HIDDEN), channel=False)
    found = describe(pure, lengths=(1, 64, 128))
    assert found.recurrent and len(set(found.state_bytes.values())) == 1
    other = spec_of(attention(HIDDEN, num_heads=2), channel=False)
    mixed = describe(pure.with_(layers=(pure.layers[0], other.layers[0])), lengths=(1, 64, 128))
    assert not mixed.recurrent
    assert mixed.state_bytes[128] - mixed.state_bytes[64] == 64 * 2 * HIDDEN * 4
    half = describe(other, lengths=(64,), dtype=torch.bfloat16)
    assert half.state_bytes[64] * 2 == describe(other, lengths=(64,)).state_bytes[64]


@pytest.mark.parametrize("name", ["llama", "gpt2", "plain", "mamba"])
def test_memory_to_train_is_what_a_pass_keeps(name: str) -> None:
    """An estimate from above: layers are looked at one by one, so that what they share is counted with each."""
    spec = toys.specs()[name]
    spec = spec if spec.positions is None else spec.replace("positions", length=256)
    spec = spec.with_(context_length=256)
    model = toys.model_of(spec)
    row = toys.tokens(1, 256)[0].tolist()
    batch = pad_rows([row], [[True] * len(row)], pad_id=0)
    training = describe(spec, lengths=(256,), micro_tokens=1024).training
    assert training.weights == training.gradients == training.moments // 2
    assert training.activations is not None and training.total is not None
    real = 4 * saved_bytes(model, batch)
    assert 0.9 * real <= training.activations <= 2.5 * real
    assert training.total > training.activations + 4 * training.weights


@pytest.mark.parametrize("kind", ["encoder", "encoder-decoder"])
def test_other_shapes_are_described(kind: str) -> None:
    specs: list[Any] = [family.read for family in encoder_families() if family.model_type == "bert"]
    config: dict[str, Any] = {
        "model_type": "bert", "vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 48, "max_position_embeddings": 64, "type_vocab_size": 2, "hidden_act": "gelu",
    }  # fmt: skip
    if kind == "encoder-decoder":
        specs = [family.read for family in encoder_decoder_families() if family.model_type == "t5"]
        config = {
            "model_type": "t5", "vocab_size": 99, "d_model": 32, "d_kv": 16, "d_ff": 48, "num_layers": 2,
            "num_heads": 2, "relative_attention_num_buckets": 8, "decoder_start_token_id": 0,
        }  # fmt: skip
    spec = specs[0](Fields(config))
    found = describe(spec, lengths=(16, 32))
    assert found.notes == ()
    assert found.parameters.total == sum(parameter.numel() for parameter in spec.build().parameters())
    assert found.operations[32] > found.operations[16] > 2 * 2 * 4 * 32 * 32
    assert found.state_bytes == {}
    assert isinstance(spec, Encoder.Spec) == (kind == "encoder")


def test_an_outline_tells_equal_layers_once() -> None:
    spec = toys.specs()["smollm3"]
    tree = outline(spec)
    assert tree.parameters == parameters_of(spec)
    told = [head.strip() for head, _, _ in lines(tree)]
    assert sum(head.startswith("layers.") for head in told) == len(set(spec.layers)) == 2
    assert sum(part.parameters for part in tree.parts) == tree.parameters
    assert sum(part.copies for part in tree.parts if part.path.startswith("layers")) == len(spec.layers)
    assert [numbers(item) for item in ([0], [0, 1, 2], [0, 2, 4, 6], [0, 1, 2, 5], [3, 9])] == [
        "0", "0-2", "0-6/2", "0-2,5", "3,9",
    ]  # fmt: skip
