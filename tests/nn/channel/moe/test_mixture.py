"""The mixture against a loop over tokens, against the blocks of transformers, and in a decoder with every technique."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import toys
from torch import Tensor

from almanac.adapt.lora import Lora
from almanac.core.catalog import technique_classes, techniques
from almanac.core.errors import ShapeError
from almanac.core.technique import Attachment, Plan, assemble, initialise
from almanac.nn.activation import Silu
from almanac.nn.channel.gated import gated
from almanac.nn.channel.moe.clamped import ClampedExperts
from almanac.nn.channel.moe.experts import Experts, GatedExperts, inward, outward
from almanac.nn.channel.moe.mixture import MIN_ROWS, Mixture, gated_experts, slots
from almanac.nn.channel.moe.routing import (
    Groups,
    Router,
    Rule,
    SigmoidInput,
    SigmoidTop,
    SoftmaxTop,
    TopSoftmax,
    correction,
    gate_map,
)
from almanac.nn.linear_maps import LinearMap
from almanac.nn.stack import Decoder

HIDDEN, INNER, EXPERTS, K = 32, 48, 8, 3
RULES: dict[str, Rule] = {
    "softmax": SoftmaxTop(),
    "normalised": SoftmaxTop(normalise=True, scale=2.0),
    "top": TopSoftmax(),
    "sigmoid": SigmoidTop(groups=Groups(count=4, kept=2, best=2)),
    "input": SigmoidInput(),
}


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def stirred(spec: Mixture.Spec) -> Mixture:
    """A mixture whose every number is random."""
    made = initialise(spec.build(), seed=0).double().eval()
    for index, parameter in enumerate(made.parameters()):
        torch.nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(index))
    assert isinstance(made, Mixture)
    return made


def spec_of(rule: Rule, *, shared: bool = False) -> Mixture.Spec:
    spec = gated_experts(HIDDEN, INNER, num_experts=EXPERTS, num_chosen=K, shared=24 if shared else 0)
    spec = spec.replace("router", rule=rule)
    return spec.with_(shared_gate=gate_map(HIDDEN, 1)) if shared else spec


def slow(made: Mixture, x: Tensor) -> Tensor:
    """Token after token, expert after expert."""
    routing = made.router(x)
    bank, rows = made.experts, []
    for token, experts, weights in zip(
        x.flatten(0, 1), routing.experts.flatten(0, 1), routing.weights.flatten(0, 1), strict=True
    ):
        total = torch.zeros_like(token)
        for expert, weight in zip(experts.tolist(), weights, strict=True):
            read = token * weight if made.router.rule.scales_input else token
            gate, up, down = (leaf.dense_weight()[expert] for leaf in (bank.gate, bank.up, bank.down))
            said = down @ (F.silu(gate @ read) * (up @ read))
            total = total + (said if made.router.rule.scales_input else weight * said)
        if made.shared is not None and made.shared_gate is not None:
            total = total + torch.sigmoid(made.shared_gate(token)) * made.shared(token)
        rows.append(total)
    return torch.stack(rows).view(x.shape)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("shape", [(2, 11), (1, 1), (3, 1)])
def test_outputs_and_gradients_are_those_of_the_loop(rule: str, shared: bool, shape: tuple[int, int]) -> None:
    made, x = stirred(spec_of(RULES[rule], shared=shared)), drawn(*shape, HIDDEN, seed=9)
    results = []
    for compute in (made, lambda given: slow(made, given)):
        given = x.clone().requires_grad_()
        y = compute(given)
        wanted = [given, *(item for name, item in made.named_parameters() if "correction" not in name)]
        grads = torch.autograd.grad(y.square().sum(), wanted, allow_unused=True, materialize_grads=True)
        results.append((y, *grads))
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)


def test_one_expert_or_equal_experts_are_the_dense_channel() -> None:
    x, single = drawn(2, 7, HIDDEN, seed=4), initialise(gated(HIDDEN, INNER).build(), seed=1).double()
    for count, chosen in ((1, 1), (EXPERTS, K)):
        made = stirred(
            gated_experts(HIDDEN, INNER, num_experts=count, num_chosen=chosen).replace("router", rule=TopSoftmax())
        )
        for name in ("gate", "up", "down"):
            leaf = getattr(single, name)
            getattr(made.experts, name).set_weight(leaf.dense_weight().detach().expand(count, -1, -1).clone())
        torch.testing.assert_close(made(x), single(x), rtol=1e-12, atol=1e-12)


def test_a_token_without_room_is_left_to_the_residual() -> None:
    made = stirred(spec_of(SoftmaxTop()).replace("router", num_chosen=1, capacity=0.25)).train()
    x = drawn(2, 32, HIDDEN, seed=5)
    dropped = ~made.router(x).kept[..., 0]
    y = made(x)
    assert 0 < int(dropped.sum()) < 64
    assert not y[dropped].any()
    assert bool(y[~dropped].abs().sum(-1).all())
    torch.testing.assert_close(y, slow(made, x), rtol=1e-10, atol=1e-10)


def test_slots_hold_every_pair_once_sorted_with_room_to_spare() -> None:
    experts = torch.randint(0, EXPERTS, (11, K), generator=torch.Generator().manual_seed(0))
    places, ends, total = slots(experts, EXPERTS)
    starts = [0, *ends.tolist()[:-1]]
    counts = torch.bincount(experts.flatten(), minlength=EXPERTS).tolist()
    assert len(places.unique()) == experts.numel()
    assert total == ends[-1]
    for place, expert in zip(places.tolist(), experts.flatten().tolist(), strict=True):
        assert starts[expert] <= place < int(ends[expert])
    for count, start, end in zip(counts, starts, ends.tolist(), strict=True):
        assert end - start == (max(count, MIN_ROWS) if count else 0)


def test_a_token_gets_the_same_bits_whatever_the_others_choose() -> None:
    made = stirred(spec_of(RULES["softmax"])).float()
    x = drawn(1, 40, HIDDEN, seed=6).float()
    with torch.no_grad():
        y = made(x)
        for place in range(4, 40, 3):
            changed = x.clone()
            changed[:, place:] = drawn(1, 40 - place, HIDDEN, seed=place).float()
            assert torch.equal(made(changed)[:, :place], y[:, :place])


def test_impossible_mixtures_are_refused() -> None:
    spec = spec_of(SoftmaxTop())
    with pytest.raises(ShapeError):
        spec.with_(experts=GatedExperts.Spec(gate=inward(2, 4, 4), up=inward(2, 4, 4), down=outward(2, 4, 4)))
    with pytest.raises(ShapeError):
        spec.with_(shared_gate=gate_map(HIDDEN, 1))


# --- the blocks of transformers


def theirs(module: str, block: str, config: str, **changes: Any) -> Any:
    transformers = pytest.importorskip("transformers", reason="the oracle `transformers` is not installed")
    import importlib

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"transformers\..*")
        library = importlib.import_module(f"transformers.models.{module}.modeling_{module}")
        settings = getattr(transformers, config)(hidden_size=HIDDEN, **changes)
        settings._experts_implementation = "eager"
        made = getattr(library, block)(settings)
    for index, tensor in enumerate([*made.parameters(), *made.buffers()]):
        torch.nn.init.normal_(tensor, std=0.3, generator=torch.Generator().manual_seed(index))
    return made.double().eval()


def split(spec: Mixture.Spec, block: Any, *, transposed: bool = False, interleaved: bool = False) -> Mixture:
    """Our mixture with the numbers of a block of theirs."""
    made = spec.build().double().eval()
    fused, down = block.experts.gate_up_proj.detach(), block.experts.down_proj.detach()
    fused, down = (fused.transpose(1, 2), down.transpose(1, 2)) if transposed else (fused, down)
    gate, up = (fused[:, 0::2], fused[:, 1::2]) if interleaved else fused.chunk(2, dim=1)
    for name, value in (("gate", gate), ("up", up), ("down", down)):
        getattr(made.experts, name).set_weight(value.contiguous().clone())
    gate_of = getattr(block, "gate", None) if "gate" in block._modules else block.router
    made.router.projection.set_weight(gate_of.weight.detach().clone())
    for name in ("shared_expert", "shared_experts"):
        if name in block._modules:
            for part in ("gate", "up", "down"):
                getattr(made.shared, part).set_weight(
                    getattr(getattr(block, name), f"{part}_proj").weight.detach().clone()
                )
    return made


def assert_same(ours: Mixture, block: Any) -> None:
    """Their softmax is taken in float32 even in float64, and so are their router's products; else 1e-10 would do."""
    x = drawn(2, 13, HIDDEN, seed=7)
    with torch.no_grad():
        expected = block(x)
        expected = expected[0] if isinstance(expected, tuple) else expected
        torch.testing.assert_close(ours(x), expected.view(x.shape), rtol=0, atol=1e-5)


def test_mixtral() -> None:
    sizes = {"intermediate_size": INNER, "num_local_experts": EXPERTS, "num_experts_per_tok": K}
    block = theirs("mixtral", "MixtralSparseMoeBlock", "MixtralConfig", **sizes)
    assert_same(split(spec_of(SoftmaxTop(normalise=True)), block), block)


@pytest.mark.parametrize("normalise", [True, False])
def test_qwen2_and_qwen3(normalise: bool) -> None:
    sizes = {
        "moe_intermediate_size": INNER,
        "num_experts": EXPERTS,
        "num_experts_per_tok": K,
        "norm_topk_prob": normalise,
    }
    rule = SoftmaxTop(normalise=normalise)
    block = theirs("qwen3_moe", "Qwen3MoeSparseMoeBlock", "Qwen3MoeConfig", **sizes)
    assert_same(split(spec_of(rule), block), block)
    block = theirs("qwen2_moe", "Qwen2MoeSparseMoeBlock", "Qwen2MoeConfig", shared_expert_intermediate_size=24, **sizes)
    ours = split(spec_of(rule, shared=True), block)
    assert ours.shared_gate is not None
    ours.shared_gate.set_weight(block.shared_expert_gate.weight.detach().clone())
    assert_same(ours, block)


@pytest.mark.parametrize("groups", [None, Groups(count=4, kept=2)])
def test_deepseek_v2(groups: Groups | None) -> None:
    method = {"topk_method": "greedy"}
    if groups is not None:
        method = {"topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 2}
    block = theirs(
        "deepseek_v2", "DeepseekV2Moe", "DeepseekV2Config", moe_intermediate_size=INNER, n_routed_experts=EXPERTS,
        num_experts_per_tok=K, n_shared_experts=2, routed_scaling_factor=1.5, **method,
    )  # fmt: skip
    spec = spec_of(SoftmaxTop(scale=1.5, groups=groups)).with_(shared=gated(HIDDEN, 2 * INNER))
    assert_same(split(spec, block), block)


@pytest.mark.parametrize("normalise", [True, False])
def test_deepseek_v3(normalise: bool) -> None:
    block = theirs(
        "deepseek_v3", "DeepseekV3MoE", "DeepseekV3Config", moe_intermediate_size=INNER, n_routed_experts=EXPERTS,
        num_experts_per_tok=K, n_shared_experts=1, n_group=4, topk_group=2, norm_topk_prob=normalise,
    )  # fmt: skip
    rule = SigmoidTop(normalise=normalise, scale=2.5, groups=Groups(count=4, kept=2, best=2))
    spec = spec_of(rule).with_(shared=gated(HIDDEN, INNER)).replace("router", correction=correction(EXPERTS))
    ours = split(spec, block)
    assert ours.router.correction is not None
    ours.router.correction.set_weight(block.gate.e_score_correction_bias.clone())
    assert_same(ours, block)


def test_gpt_oss() -> None:
    sizes = {"intermediate_size": INNER, "num_local_experts": EXPERTS, "num_experts_per_tok": K}
    block = theirs("gpt_oss", "GptOssMLP", "GptOssConfig", **sizes)
    into, back = inward(EXPERTS, HIDDEN, INNER, bias=True), outward(EXPERTS, HIDDEN, INNER, bias=True)
    spec = Mixture.Spec(
        router=Router.Spec(projection=gate_map(HIDDEN, EXPERTS, bias=True), num_chosen=K, rule=TopSoftmax()),
        experts=ClampedExperts.Spec(gate=into, up=into, down=back),
    )
    ours = split(spec, block, transposed=True, interleaved=True)
    fused = block.experts.gate_up_proj_bias.detach()
    with torch.no_grad():
        for leaf, value in (
            (ours.experts.gate, fused[:, 0::2]),
            (ours.experts.up, fused[:, 1::2]),
            (ours.experts.down, block.experts.down_proj_bias),
            (ours.router.projection, block.router.bias),
        ):
            leaf.bias.copy_(value)
    assert_same(ours, block)


def test_llama4() -> None:
    sizes = {
        "intermediate_size": INNER,
        "intermediate_size_mlp": 24,
        "num_local_experts": EXPERTS,
        "num_experts_per_tok": 1,
    }
    block = theirs("llama4", "Llama4TextMoe", "Llama4TextConfig", **sizes)
    spec = spec_of(SigmoidInput()).replace("router", num_chosen=1).with_(shared=gated(HIDDEN, INNER))
    assert_same(split(spec, block, transposed=True), block)


# --- in a decoder, with every technique


def decoder_spec() -> Decoder.Spec:
    channel = gated_experts(toys.HIDDEN, 96, num_experts=4, num_chosen=2, shared=32)
    return toys.plain().replace("layers.*", channel=channel)


def logits(model: Decoder) -> Tensor:
    with torch.no_grad():
        return model(toys.tokens(2, 26))


KINDS = sorted(
    (cls for module in techniques().values() for cls in technique_classes(module) if issubclass(cls, Attachment)),
    key=lambda cls: cls.kind(),
)


@pytest.mark.parametrize("cls", KINDS, ids=lambda cls: cls.kind())
def test_every_technique_acts_on_experts(cls: type[Attachment]) -> None:
    spec, technique = decoder_spec(), cls()
    model = toys.model_of(spec)
    before, base = logits(model), {id(item) for item in model.parameters()}
    technique.attach(model)
    toys.stir(item for item in model.parameters() if id(item) not in base)
    after = logits(model)
    assert not torch.equal(after, before)
    for path, leaf in toys.leaves(model).items():
        if isinstance(leaf, LinearMap) and path.startswith("layers."):
            assert leaf.chain or not isinstance(leaf.weight, torch.nn.Parameter), path
    again = assemble(Decoder.Spec.from_dict(spec.to_dict()), Plan(techniques=(technique,)), toys.tensors_of(model))
    assert isinstance(again, Decoder)
    assert torch.equal(logits(again), after)
    if cls.folds:
        technique.fold(model)
        torch.testing.assert_close(logits(model), after, rtol=0, atol=1e-5 * float(after.abs().max()))


def test_lora_on_experts_is_an_update_of_each() -> None:
    model = toys.model_of(decoder_spec())
    Lora(rank=3, targets="layers.0.channel.experts.up").attach(model)
    site = toys.leaves(model)["layers.0.channel.experts.up"]
    wrapper = site.wrapper("lora")
    assert wrapper is not None
    shapes = {name: tuple(item.shape) for name, item in wrapper.named_parameters()}
    assert shapes == {"a": (4, 3, toys.HIDDEN), "b": (4, 96, 3)}
    toys.stir(wrapper.parameters())
    x, ends = drawn(7, toys.HIDDEN).float(), torch.tensor([2, 2, 6, 7])
    with torch.no_grad():
        weight = site.dense_weight() + wrapper.update()
        rows = [x[:2] @ weight[0].T, x[2:6] @ weight[2].T, x[6:] @ weight[3].T]
        torch.testing.assert_close(site(x, ends), torch.cat(rows), rtol=0, atol=1e-5)


def test_a_decoder_of_experts_compiles_and_builds_on_meta() -> None:
    torch._dynamo.reset()
    model = toys.model_of(decoder_spec())
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(logits(compiled), logits(model), rtol=0, atol=1e-5)
    with torch.device("meta"):
        ghost = decoder_spec().build()
        assert ghost(torch.zeros(2, 5, dtype=torch.int64)).shape == (2, 5, toys.VOCAB)
    assert any(isinstance(leaf, Experts) for leaf in toys.leaves(ghost).values())
    assert isinstance(decoder_spec().layers[0].channel.experts.activation, Silu)
