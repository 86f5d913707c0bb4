"""Random tiny models of transformers, read by us: the same logits, the same hidden states, the same greedy tokens, both ways.

A test file of an area subclasses `Parity` with its ``cases``: name -> (model_type, changes of the configuration).
"""

from __future__ import annotations

import copy
import functools
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from oracle import largest_difference, quiet, randomised, transformers, watched
from torch import Tensor, nn

from almanac.core.state import Context
from almanac.core.technique import Plan, assemble
from almanac.generate.engine import Engine, Request, run_all
from almanac.models.checkpoint import Packed, drop_tied_head
from almanac.models.family import Fields, family_for
from almanac.models.hub_folder import family_of, hub_config, hub_names, read_hub_folder, shapes_of
from almanac.models.tensor_layout import to_ours
from almanac.nn.stack import Decoder

VOCAB, TIME = 97, 40
SIZES: dict[str, Any] = {
    "vocab_size": VOCAB, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3, "num_attention_heads": 6,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "pad_token_id": 0, "bos_token_id": None,
    "eos_token_id": None,
}  # fmt: skip
DEFAULTS = ("vocab_size", "pad_token_id", "bos_token_id", "eos_token_id")
Cases = dict[str, tuple[str, dict[str, Any]]]


@dataclass(frozen=True)
class Pair:
    """One model in both implementations."""

    name: str
    theirs: Any
    ours: Decoder


def config_of(name: str, changes: Mapping[str, Any], sizes: Mapping[str, Any] = SIZES) -> Any:
    """A configuration of theirs; sizes that its class has no field for are left out."""
    known = type(transformers.AutoConfig.for_model(name))().to_dict()
    mapped = known.keys() | getattr(type(transformers.AutoConfig.for_model(name)), "attribute_map", {}).keys()
    fields = {key: value for key, value in sizes.items() if key in mapped or key in DEFAULTS}
    return transformers.AutoConfig.for_model(name, **{**fields, **changes})


def make(name: str, changes: Mapping[str, Any], *, seed: int = 0) -> Any:
    """A transformers model whose every parameter is random, norms and biases included."""
    with quiet():
        config = config_of(name, changes)
        model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation=_attention_of(name))
    return randomised(model.float(), seed=seed)


EAGER = frozenset(("mamba", "mamba2", "falcon_mamba", "rwkv", "gemma2", "gpt_oss", "gptj", "bloom", "mpt", "codegen"))
"""Families whose fused attention leaves something out in theirs, or that have none."""


def _attention_of(name: str) -> str:
    return "eager" if name in EAGER else "sdpa"


def translate(model: Any) -> Decoder:
    """Their configuration and tensors through our family."""
    config = json.loads(model.config.to_json_string(use_diff=False))
    family = family_for(config["model_type"])
    fields = Fields(config)
    spec = family.read(fields)
    assert fields.not_understood() == {}
    found, unknown = to_ours(family.rows(spec), shapes_of(spec), model.state_dict())
    assert [name for name in unknown if not name.endswith(family.derived or ("\0",))] == []
    tensors: dict[str, Tensor | Packed] = {name: tensor.clone() for name, tensor in found.items()}
    drop_tied_head(spec, tensors)
    made = assemble(spec, Plan(), {key: tensor for key, tensor in tensors.items() if isinstance(tensor, Tensor)})
    assert isinstance(made, Decoder)
    return made


def tokens(rows: int, time: int) -> Tensor:
    return torch.randint(0, VOCAB, (rows, time), generator=torch.Generator().manual_seed(3))


def difference(theirs: Any, ours: Decoder) -> float:
    """The largest difference of logits, and of what enters the first block and leaves each."""
    row = tokens(2, TIME)
    entered: list[Tensor] = []
    hook = ours.layers[0].register_forward_pre_hook(lambda module, inputs: entered.append(inputs[0]))
    logits, left = watched(ours.layers, lambda: ours(row))
    hook.remove()
    with torch.no_grad(), quiet():
        reference = theirs(row, attention_mask=torch.ones_like(row), output_hidden_states=True)
        last = ours.hidden(row)[0]
        inward = vars(ours.head)["_modules"].get("inward")  # theirs gives the last after it (OPT 350M)
        last = inward(last) if inward is not None else last
    # transformers gives the embedding, every block but the last, and the last after the final norm
    mine = [logits, entered[0], *left[:-1], last]
    return largest_difference(mine, [reference.logits, *reference.hidden_states])


def unrounded(model: nn.Module) -> nn.Module:
    """Their RMS norms compute in float32 whatever they are given; here they do not."""
    for module in model.modules():
        kind = type(module).__name__
        if (
            re.search("RMSNorm$", kind)
            and "Gated" not in kind
            and (weight := getattr(module, "weight", None)) is not None
        ):
            epsilon = getattr(module, "variance_epsilon", None) or getattr(module, "eps", None)
            module.forward = partial(rms_norm, weight, epsilon, 1.0 if kind.startswith("Gemma") else 0.0)
    return model


def rms_norm(weight: Tensor, epsilon: float, offset: float, x: Tensor) -> Tensor:
    return (weight + offset) * x / (x.square().mean(-1, keepdim=True) + epsilon).sqrt()


class Parity:
    """The checks; ``cases`` are those of an area."""

    cases: ClassVar[Cases] = {}
    rounds: ClassVar[tuple[str, ...]] = ()  # model types whose own code rounds to float32 whatever it is given
    pad: ClassVar[tuple[str, ...]] = ()  # model types that cannot be padded on the left

    @pytest.fixture
    def pair(self, case: str) -> Pair:
        return pair_of(case, self.cases[case][0], json.dumps(self.cases[case][1]))

    def difference(self, theirs: Any, ours: Decoder) -> float:
        """What the bounds are set on; an area overrides it where their hidden states are others."""
        return difference(theirs, ours)

    def test_logits_and_hidden_states_agree(self, pair: Pair) -> None:
        assert self.difference(pair.theirs, pair.ours) <= 1e-5

    def test_they_agree_in_double_precision(self, pair: Pair) -> None:
        """Without rounding to hide behind: float64 throughout, but for the angles, which are float32 in both. Where their
        own code rounds to float32 whatever it is given (``rounds``), it stays in float32, whose rounding reaches 3e-5."""
        ours = copy.deepcopy(pair.ours).double()
        if pair.name in self.rounds:
            assert self.difference(pair.theirs, ours) <= 1e-4
        else:
            assert self.difference(unrounded(copy.deepcopy(pair.theirs).double()), ours) <= 1e-10

    def test_greedy_tokens_agree(self, pair: Pair) -> None:
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

    def test_left_padded_rows_agree(self, pair: Pair) -> None:
        """Their padding is masked on the left; ours is a segment of its own, wherever it lies. Where their code takes none
        (``pad``), theirs reads each row alone."""
        rows, pads = tokens(2, 20), [0, 6]
        mask = torch.tensor([[0] * pad + [1] * (20 - pad) for pad in pads])
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        with torch.no_grad(), quiet():
            got = pair.ours(rows, Context(positions=positions, segments=mask - 1))
            if pair.name in self.pad:
                alone = [pair.theirs(rows[index : index + 1, pad:]).logits[0] for index, pad in enumerate(pads)]
                reference = torch.cat(alone)
            else:
                reference = _with_positions(pair.theirs, rows, mask, positions)[mask.bool()]
        torch.testing.assert_close(got[mask.bool()], reference, rtol=0, atol=1e-5)

    def test_packed_rows_agree_with_single_ones(self, pair: Pair) -> None:
        rows = [tokens(1, size) for size in (9, 17, 4)]
        lengths = [row.shape[1] for row in rows]
        positions = torch.cat([torch.arange(length) for length in lengths])[None]
        segments = torch.cat([torch.full((length,), index) for index, length in enumerate(lengths)])[None]
        with torch.no_grad(), quiet():
            reference = torch.cat([pair.theirs(row).logits for row in rows], dim=1)
            got = pair.ours(torch.cat(rows, dim=1), Context(positions=positions, segments=segments))
        torch.testing.assert_close(got, reference, rtol=0, atol=1e-5)

    def test_their_saved_folder_is_read(self, pair: Pair, tmp_path: Path) -> None:
        with quiet():
            pair.theirs.save_pretrained(tmp_path)
        read = read_hub_folder(tmp_path)
        assert read.not_understood == {}
        tensors = {key: tensor for key, tensor in read.tensors.items() if isinstance(tensor, Tensor)}
        made = assemble(read.spec, Plan(), tensors)
        with torch.no_grad():
            assert torch.equal(made(tokens(2, TIME)), pair.ours(tokens(2, TIME)))

    def test_they_read_what_we_write(
        self, pair: Pair, spec_of: Callable[[Decoder], Decoder.Spec], tmp_path: Path
    ) -> None:
        from almanac.files.safetensors import write_safetensors

        spec = spec_of(pair.theirs)
        found = family_of(spec, pair.name)
        assert found is not None
        family, config = found
        assert family.model_type == pair.name
        tensors = {key: parameter.detach() for key, parameter in pair.ours.named_parameters()}
        whole = hub_config(family, config, dtype=torch.float32, special={"pad_token_id": 0})
        (tmp_path / "config.json").write_text(json.dumps(whole))
        write_safetensors(tmp_path / "model.safetensors", hub_names(family, spec, tensors))
        with quiet():
            theirs = transformers.AutoModelForCausalLM.from_pretrained(
                tmp_path, attn_implementation=_attention_of(pair.name), dtype=torch.float32
            )
        with torch.no_grad(), quiet():
            got = theirs(tokens(2, TIME)).logits
            reference = pair.theirs(tokens(2, TIME)).logits
        # tensors that lie otherwise in memory are summed in another order
        torch.testing.assert_close(got, reference, rtol=0, atol=1e-5)

    @pytest.fixture
    def spec_of(self) -> Callable[[Any], Decoder.Spec]:
        def read(model: Any) -> Decoder.Spec:
            config = json.loads(model.config.to_json_string(use_diff=False))
            return family_for(config["model_type"]).read(Fields(config))

        return read


@functools.lru_cache(maxsize=4)
def pair_of(case: str, name: str, changes: str) -> Pair:
    """A case in both implementations; tests of one case follow each other, so few are kept."""
    theirs = make(name, json.loads(changes), seed=len(case))
    return Pair(name, theirs, translate(theirs))


def _with_positions(model: Any, rows: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
    """Their logits of padded rows; those whose forward knows no positions find them in the mask."""
    import inspect

    known = inspect.signature(model.forward).parameters
    more = {"position_ids": positions} if "position_ids" in known else {}
    return model(rows, attention_mask=mask, **more).logits
