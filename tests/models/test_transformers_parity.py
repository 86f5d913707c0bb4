"""Random tiny models of transformers, read by us: the same logits, the same hidden states, the same greedy tokens."""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from almanac.core.state import Context
from almanac.core.technique import Plan, assemble
from almanac.generate.engine import Engine, Request, run_all
from almanac.models.checkpoint import Packed, drop_tied_head
from almanac.models.family import Fields, expand, families, family_for
from almanac.models.hub_folder import read_hub_folder
from almanac.nn.stack import Decoder

transformers = pytest.importorskip("transformers", reason="the oracle `transformers` is not installed")

VOCAB, TIME = 97, 40
SIZES = {
    "vocab_size": VOCAB, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3, "num_attention_heads": 6,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "pad_token_id": 0, "bos_token_id": None,
    "eos_token_id": None,
}  # fmt: skip
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}  # fmt: skip
LINEAR = {"rope_type": "linear", "rope_theta": 1000.0, "factor": 4.0}

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama, one key-value head": ("llama", {"num_key_value_heads": 1}),
    "llama, a key-value head each": ("llama", {"num_key_value_heads": 6}),
    "llama, tied": ("llama", {"tie_word_embeddings": True}),
    "llama, biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama, wide heads": ("llama", {"head_dim": 16}),
    "llama, narrow heads": ("llama", {"head_dim": 4}),
    "llama, llama3 scaling": ("llama", {"rope_parameters": LLAMA3}),
    "llama, linear scaling": ("llama", {"rope_parameters": LINEAR}),
    "llama, another theta": ("llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 37.0}}),
    "llama, gelu": ("llama", {"hidden_act": "gelu_pytorch_tanh", "rms_norm_eps": 1e-2}),
    "llama, exact gelu": ("llama", {"hidden_act": "gelu"}),
    "mistral, window": ("mistral", {"sliding_window": 7}),
    "mistral, window of one": ("mistral", {"sliding_window": 1}),
    "mistral, no window": ("mistral", {"sliding_window": None, "head_dim": 16}),
    "qwen2": ("qwen2", {"tie_word_embeddings": True}),
    "qwen2, upper windows": ("qwen2", {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}),
    "qwen2, windows unused": ("qwen2", {"use_sliding_window": False, "sliding_window": 5, "max_window_layers": 0}),
    "smollm3": ("smollm3", {"num_hidden_layers": 5}),
    "smollm3, every second": ("smollm3", {"num_hidden_layers": 4, "no_rope_layer_interval": 2, "attention_bias": True}),
    "smollm3, listed": ("smollm3", {"no_rope_layers": [0, 1, 0], "tie_word_embeddings": False}),
    "smollm3, windows": (
        "smollm3",
        {"num_hidden_layers": 4, "use_sliding_window": True, "sliding_window": 6, "no_rope_layer_interval": 2},
    ),
}


@dataclass(frozen=True)
class Pair:
    """One model in both implementations."""

    theirs: Any
    ours: Decoder


@contextmanager
def quiet() -> Iterator[None]:
    """transformers announces its own deprecations through warnings; those of other libraries stay errors."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"transformers\..*")
        before = transformers.logging.get_verbosity()
        transformers.logging.set_verbosity_error()
        try:
            yield
        finally:
            transformers.logging.set_verbosity(before)


def make(case: str) -> Any:
    """A transformers model whose every parameter is random, norms and biases included."""
    name, changes = CASES[case]
    with quiet():
        config = transformers.AutoConfig.for_model(name, **{**SIZES, **changes})
        model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").float().eval()
    generator = torch.Generator().manual_seed(len(case))
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(noise * 0.1 + (1 if parameter.dim() == 1 else 0))
    return model


def translate(model: Any) -> Decoder:
    """Their configuration and tensors through our family."""
    config = json.loads(model.config.to_json_string(use_diff=False))
    family = family_for(config["model_type"])
    fields = Fields(config)
    spec = family.read(fields)
    assert fields.not_understood() == {}
    names = {key.safetensors: key.ours for key in expand(family.keys, len(spec.layers))}
    tensors: dict[str, Tensor | Packed] = {}
    for key, tensor in model.state_dict().items():
        owner, _, leaf = key.rpartition(".")
        tensors[f"{names[owner]}.{leaf}"] = tensor.clone()
    drop_tied_head(spec, tensors)
    made = assemble(spec, Plan(), {key: tensor for key, tensor in tensors.items() if isinstance(tensor, Tensor)})
    assert isinstance(made, Decoder)
    return made


@pytest.fixture(scope="module")
def pairs() -> dict[str, Pair]:
    theirs = {case: make(case) for case in CASES}
    return {case: Pair(model, translate(model)) for case, model in theirs.items()}


@pytest.fixture(params=sorted(CASES))
def pair(request: pytest.FixtureRequest, pairs: dict[str, Pair]) -> Pair:
    return pairs[request.param]


def tokens(rows: int, time: int) -> Tensor:
    return torch.randint(0, VOCAB, (rows, time), generator=torch.Generator().manual_seed(3))


def hidden_states(model: Decoder, row: Tensor) -> list[Tensor]:
    """What enters the first block and what leaves each, [batch, time, hidden]."""
    seen: list[Tensor] = []
    hooks = [model.embed.register_forward_hook(lambda module, inputs, output: seen.append(output))]
    hooks += [
        layer.register_forward_hook(lambda module, inputs, output: seen.append(output[0])) for layer in model.layers
    ]
    try:
        with torch.no_grad():
            model(row)
    finally:
        for hook in hooks:
            hook.remove()
    return seen


def compare(theirs: Any, ours: Decoder, tolerance: float) -> None:
    row = tokens(2, TIME)
    with torch.no_grad(), quiet():
        reference = theirs(row, attention_mask=torch.ones_like(row), output_hidden_states=True)
        logits = ours(row)
        last = ours.hidden(row)[0]
    torch.testing.assert_close(logits, reference.logits, rtol=0, atol=tolerance)
    states = hidden_states(ours, row)
    # transformers gives the embedding, every block but the last, and the last after the final norm
    assert len(reference.hidden_states) == len(states)
    for mine, other in zip([*states[:-1], last], reference.hidden_states, strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=tolerance)


def test_logits_and_hidden_states_agree(pair: Pair) -> None:
    compare(pair.theirs, pair.ours, 1e-5)


def test_they_agree_in_double_precision(pair: Pair) -> None:
    """Without rounding to hide behind: float64 throughout, but for the angles, which are float32 in both."""
    theirs, ours = copy.deepcopy(pair.theirs).double(), copy.deepcopy(pair.ours).double()
    for module in theirs.modules():
        if [name for name, item in module.named_parameters(recurse=False) if item.dim() == 1] == ["weight"]:
            module.forward = partial(rms_norm, module.weight, module.variance_epsilon)  # theirs rounds to float32
    compare(theirs, ours, 1e-10)


def rms_norm(weight: Tensor, epsilon: float, x: Tensor) -> Tensor:
    return weight * x / (x.square().mean(-1, keepdim=True) + epsilon).sqrt()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_angles_stay_exact_in_every_precision(dtype: torch.dtype, pairs: dict[str, Pair]) -> None:
    """A cast of the model must not round the rotary frequencies: far positions would turn to noise."""
    ours = copy.deepcopy(pairs["llama, llama3 scaling"].ours)
    before = [buffer.clone() for buffer in ours.buffers()]
    assert before
    for after, kept in zip(ours.to(dtype).float().buffers(), before, strict=True):
        assert torch.equal(after, kept)


def test_greedy_tokens_agree(pair: Pair) -> None:
    rows, new = tokens(2, 12), 40
    with torch.no_grad(), quiet():
        reference = pair.theirs.generate(
            rows,
            attention_mask=torch.ones_like(rows),  # else they mask what equals the padding id
            max_new_tokens=new,
            do_sample=False,
            eos_token_id=None,
            use_cache=False,  # their cache keeps the whole past of a window of one
        )
    requests = [Request(tokens=tuple(row), max_tokens=new) for row in rows.tolist()]
    got = run_all(Engine(pair.ours, prefill_chunk=5), requests)
    assert got == reference[:, rows.shape[1] :].tolist()


def test_left_padded_rows_agree(pair: Pair) -> None:
    """Their padding is masked on the left; ours is a segment of its own, wherever it lies."""
    rows, pads = tokens(2, 20), [0, 6]
    mask = torch.tensor([[0] * pad + [1] * (20 - pad) for pad in pads])
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad(), quiet():
        reference = pair.theirs(rows, attention_mask=mask, position_ids=positions).logits
        got = pair.ours(rows, Context(positions=positions, segments=mask - 1))
    torch.testing.assert_close(got[mask.bool()], reference[mask.bool()], rtol=0, atol=1e-5)


def test_packed_rows_agree_with_single_ones(pair: Pair) -> None:
    rows = [tokens(1, size) for size in (9, 17, 4)]
    lengths = [row.shape[1] for row in rows]
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    segments = torch.cat([torch.full((length,), index) for index, length in enumerate(lengths)])[None]
    with torch.no_grad(), quiet():
        reference = torch.cat([pair.theirs(row).logits for row in rows], dim=1)
        got = pair.ours(torch.cat(rows, dim=1), Context(positions=positions, segments=segments))
    torch.testing.assert_close(got, reference, rtol=0, atol=1e-5)


def test_their_saved_folder_is_read(pair: Pair, tmp_path: Path) -> None:
    with quiet():
        pair.theirs.save_pretrained(tmp_path)
    read = read_hub_folder(tmp_path)
    assert read.not_understood == {}
    tensors = {key: tensor for key, tensor in read.tensors.items() if isinstance(tensor, Tensor)}
    made = assemble(read.spec, Plan(), tensors)
    with torch.no_grad():
        assert torch.equal(made(tokens(2, TIME)), pair.ours(tokens(2, TIME)))


@pytest.mark.parametrize("name", [family.model_type for family in families()])
def test_silent_fields_mean_what_they_mean_to_them(name: str) -> None:
    """A config.json may leave out what equals the default of its own class."""
    needed = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    silent = {field: SIZES[field] for field in needed} | {"num_key_value_heads": 2}
    with quiet():
        config = transformers.AutoConfig.for_model(name, **silent)
    spoken = json.loads(config.to_json_string(use_diff=False))
    family = family_for(name)
    assert family.read(Fields(silent)) == family.read(Fields(spoken))


def test_every_family_has_an_oracle() -> None:
    assert {family.model_type for family in families()} == {name for name, _ in CASES.values()}
