"""LoRA against its equation, and against peft on the same weights."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
import toys

from almanac.adapt.lora import Lora, LowRank
from almanac.core.errors import AlmanacError, SelectionError
from almanac.core.site import select
from almanac.core.technique import Plan, assemble
from almanac.models.family import family_for
from almanac.nn.linear import Linear
from almanac.nn.stack import Decoder


def wrapper_of(site: Linear, name: str = "lora") -> LowRank:
    found = site.wrapper(name)
    assert isinstance(found, LowRank)
    return found


def single(technique: Lora, *, width: int = 6, out: int = 4) -> Linear:
    """One linear map with the technique attached and random matrices."""
    site = Linear.Spec(in_features=width, out_features=out, bias=True).build()
    for parameter in site.parameters():
        torch.nn.init.normal_(parameter)
    holder = torch.nn.ModuleDict({"layers": torch.nn.ModuleDict({"x": site})})
    technique.attach(holder)
    torch.nn.init.normal_(wrapper_of(site, technique.name).b)
    return site


@pytest.mark.parametrize(("rank", "alpha"), [(1, 16.0), (3, 3.0), (4, 1.0)])
def test_equation_3(rank: int, alpha: float) -> None:
    site = single(Lora(rank=rank, alpha=alpha))
    wrapper, x = wrapper_of(site), torch.randn(5, 6)
    assert wrapper.a.shape == (rank, 6)
    assert wrapper.b.shape == (4, rank)
    weight = site.dense_weight().double() + alpha / rank * wrapper.b.double() @ wrapper.a.double()
    assert site.bias is not None
    expected = x.double() @ weight.T + site.bias.double()
    torch.testing.assert_close(site(x).double(), expected, rtol=0, atol=1e-4)
    update = wrapper.update().double()
    torch.testing.assert_close(site.dense_weight().double() + update, weight, rtol=0, atol=1e-4)


def test_start_is_random_in_a_and_zero_in_b() -> None:
    model = toys.toy("llama")
    Lora(rank=4).attach(model)
    wrappers = {path: wrapper_of(site) for path, site in select(model, "layers.**", of=Linear).items()}
    assert len(wrappers) == toys.LAYERS * 7
    for wrapper in wrappers.values():
        bound = 1 / math.sqrt(wrapper.a.shape[1])
        a = wrapper.a.detach()
        assert float(a.abs().max()) <= bound
        assert float(a.std()) == pytest.approx(bound / math.sqrt(3), rel=0.3)
        assert not wrapper.b.any()
    starts = [wrapper.a.flatten()[:8].tolist() for wrapper in wrappers.values()]
    assert len({tuple(start) for start in starts}) == len(starts)  # every site draws for itself


def test_starts_follow_from_seed_and_name_alone() -> None:
    def start(technique: Lora, noise: int) -> torch.Tensor:
        torch.manual_seed(noise)
        model = toys.toy("llama")
        technique.attach(model)
        return wrapper_of(model.layers[1].mixer.q, technique.name).a.detach()

    assert torch.equal(start(Lora(), 1), start(Lora(), 2))
    assert not torch.equal(start(Lora(), 1), start(Lora(seed=1), 1))
    assert not torch.equal(start(Lora(), 1), start(Lora(name="other"), 1))  # two at once must not be twins
    assert torch.equal(start(Lora(), 1), start(Lora(targets="layers.1.mixer.{q,k}"), 1))


def test_dropout_acts_on_the_update_in_training_only() -> None:
    site = single(Lora(rank=2, dropout=0.5))
    x = torch.randn(64, 6)
    plain = site.eval()(x)
    assert torch.equal(site(x), plain)
    site.train()
    first, second = site(x), site(x)
    assert not torch.equal(first, second)
    base = site.compute(x)
    mean = torch.stack([site(x) - base for _ in range(400)]).mean(0)
    torch.testing.assert_close(mean, plain - base, rtol=0.5, atol=1.5)  # unbiased
    assert bool(((first - base).abs().sum(-1) > 0).any())


def test_the_base_is_trained_by_nobody_until_detached() -> None:
    model = toys.toy("llama")
    technique = Lora(targets="layers.0.**")
    technique.attach(model)
    assert all(("around" in name) == item.requires_grad for name, item in model.named_parameters())
    model.train()
    optimiser = torch.optim.SGD([item for item in model.parameters() if item.requires_grad], lr=0.5)
    before = toys.tensors_of(model)
    for _ in range(3):
        optimiser.zero_grad()
        tokens = toys.tokens(2, 12)
        torch.nn.functional.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten()).backward()
        optimiser.step()
    for name, tensor in toys.tensors_of(model).items():
        assert torch.equal(tensor, before[name]) == ("around" not in name), name


def test_folding_one_of_two_leaves_the_other_in_training() -> None:
    model = toys.toy("llama")
    first, second = Lora(name="first"), Lora(name="second", targets="layers.*.mixer.{q,v}")
    for technique in (first, second):
        technique.attach(model)
    toys.stir(item for item in model.parameters() if item.requires_grad)
    tokens = toys.tokens(1, 10)
    before = model(tokens)
    first.fold(model)
    torch.testing.assert_close(model(tokens), before, rtol=0, atol=1e-5)
    assert {name for name, item in model.named_parameters() if item.requires_grad} == {
        name for name, _ in model.named_parameters() if "around.second" in name
    }
    second.fold(model)
    torch.testing.assert_close(model(tokens), before, rtol=0, atol=1e-5)
    assert all(item.requires_grad for item in model.parameters())


def test_a_refused_attachment_changes_nothing() -> None:
    model = toys.toy("llama")
    Lora(targets="layers.2.mixer.q").attach(model)
    flags = [item.requires_grad for item in model.parameters()]
    names = [name for name, _ in model.named_parameters()]
    with pytest.raises(SelectionError, match="already attached"):
        Lora().attach(model)  # would fit everywhere but there
    assert [name for name, _ in model.named_parameters()] == names
    assert [item.requires_grad for item in model.parameters()] == flags


@pytest.mark.parametrize("changes", [{"rank": 0}, {"rank": -3}, {"dropout": 1.0}, {"dropout": -0.1}])
def test_options_out_of_range_are_refused(changes: dict[str, float]) -> None:
    with pytest.raises(AlmanacError):
        Lora(**changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_it_adapts_models_of_other_precision(dtype: torch.dtype) -> None:
    model = toys.toy("llama").to(dtype)
    technique = Lora()
    technique.attach(model)
    toys.stir(item for item in model.parameters() if item.requires_grad)
    tokens = toys.tokens(1, 10)
    attached = model(tokens)
    assert attached.dtype == dtype
    attached.float().square().mean().backward()
    technique.fold(model)
    tolerance = 1e-5 if dtype == torch.float64 else 0.1
    torch.testing.assert_close(model(tokens), attached, rtol=0, atol=tolerance)


def test_peft_agrees() -> None:
    """The same matrices in peft's LoRA on transformers' Llama: the same logits."""
    transformers = pytest.importorskip("transformers", reason="the oracle `transformers` is not installed")
    peft = pytest.importorskip("peft", reason="the oracle `peft` is not installed")
    family = family_for("llama")
    spec = toys.toy_of(family, tie_word_embeddings=False)
    ours = toys.model_of(spec)
    names = {row.ours: row.safetensors for row in family.rows(toys.specs()[family.model_type])}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"(transformers|peft)\..*")
        config = transformers.LlamaConfig(**(family.write(spec) or {}), bos_token_id=None, eos_token_id=None)
        theirs = transformers.LlamaForCausalLM(config).eval()
        state = {}
        for name, tensor in toys.tensors_of(ours).items():
            owner, _, leaf = name.rpartition(".")
            state[f"{names[owner]}.{leaf}"] = tensor
        theirs.load_state_dict(state)
        targets = ["q_proj", "v_proj", "down_proj"]
        theirs = peft.get_peft_model(theirs, peft.LoraConfig(r=3, lora_alpha=5, target_modules=targets)).eval()
    technique = Lora(rank=3, alpha=5.0, targets="layers.*.{mixer.{q,v},channel.down}")
    technique.attach(ours)
    toys.stir(item for item in ours.parameters() if item.requires_grad)
    with torch.no_grad():
        for path, site in select(ours, technique.targets, of=Linear).items():
            module = theirs.base_model.model.get_submodule(names[path])
            module.lora_A["default"].weight.copy_(wrapper_of(site).a)
            module.lora_B["default"].weight.copy_(wrapper_of(site).b)
        tokens = toys.tokens(2, 20)
        torch.testing.assert_close(ours(tokens), theirs(tokens).logits, rtol=0, atol=1e-5)
        assert float((ours(tokens) - toys.model_of(spec)(tokens)).abs().max()) > 0.1


def test_an_adapter_is_small_on_disk() -> None:
    """What has to be saved of an adapted model is the adapter: base keys and values are untouched."""
    base, adapted = toys.toy("qwen2"), toys.toy("qwen2", Lora(rank=2))
    kept = toys.tensors_of(base)
    full = toys.tensors_of(adapted)
    assert all(torch.equal(full[name], tensor) for name, tensor in kept.items())
    extra = {name: tensor for name, tensor in full.items() if name not in kept}
    assert sum(item.numel() for item in extra.values()) < 0.1 * sum(item.numel() for item in kept.values())
    again = assemble(toys.specs()["qwen2"], Plan().then(Lora(rank=2)), {**kept, **extra})
    assert isinstance(again, Decoder)
    with torch.no_grad():
        assert torch.equal(again(toys.tokens(1, 9)), adapted(toys.tokens(1, 9)))
