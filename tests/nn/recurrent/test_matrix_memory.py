"""Layers with a matrix of memory against their papers' recurrences, token by token in float64, and transformers."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from nn.recurrent.mixing import HIDDEN, built, numbers, whole
from torch import Tensor
from transformers import Mamba2Config
from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer
from transformers.models.qwen3_next.modeling_qwen3_next import torch_chunk_gated_delta_rule

from almanac.core.errors import ShapeError
from almanac.nn.positions.rope import Rope
from almanac.nn.recurrent.delta import Delta, delta, gated_delta
from almanac.nn.recurrent.fading import attend
from almanac.nn.recurrent.mamba2 import GroupedRMSNorm, Mamba2, mamba2
from almanac.nn.recurrent.retnet import Retention, log_decays, retention
from almanac.nn.recurrent.rwkv6 import GroupedLayerNorm, rwkv6
from almanac.nn.recurrent.rwkv7 import rwkv7

TIME = 21


def some(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def given(wide: bool, time: int = TIME) -> tuple[Tensor, ...]:
    """q, k, v, w, memory, a, b of 2 rows of 3 heads."""
    q, k, a, b = (some(2, 3, time, 4, seed=seed) for seed in range(4))
    w = -some(2, 3, time, 4 if wide else 1, seed=5).exp()
    a = F.normalize(a, dim=-1)
    return q, k, some(2, 3, time, 5), w, some(2, 3, 4, 5), -a, a * torch.sigmoid(b)


def loop(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    w: Tensor,
    memory: Tensor,
    *,
    rewrite: tuple[Tensor, Tensor] | None = None,
    bonus: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The equation at the head of fading.py."""
    outputs = []
    for t in range(q.shape[2]):
        arrives = k[:, :, t, :, None] * v[:, :, t, None]
        after = w[:, :, t].exp().unsqueeze(-1) * memory + arrives
        if rewrite is not None:
            a, b = rewrite
            after = after + b[:, :, t, :, None] * (a[:, :, t, None] @ memory)
        read = after if bonus is None else memory + bonus[None, :, :, None] * arrives
        outputs.append((q[:, :, t, None] @ read).squeeze(-2))
        memory = after
    return torch.stack(outputs, dim=2), memory


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("chunk", [1, 4, 7, 64])
@pytest.mark.parametrize("kind", ["fades", "is rewritten", "counts the newest apart"])
def test_chunks_are_the_recurrence(wide: bool, chunk: int, kind: str) -> None:
    *items, a, b = given(wide)
    more = {
        "fades": {},
        "is rewritten": {"rewrite": (a, b)},
        "counts the newest apart": {"bonus": some(3, 4, seed=9)},
    }[kind]
    found, expected = (
        attend((items[0], items[1], items[2], items[3]), items[4], **more, chunk=chunk),
        loop(*items, **more),
    )
    for mine, other in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("wide", [False, True])
def test_gradients_by_differences(wide: bool) -> None:
    items = [item.clone().requires_grad_() for item in given(wide, time=5)]

    def rewritten(*items: Tensor) -> tuple[Tensor, ...]:
        return attend((items[0], items[1], items[2], items[3]), items[4], rewrite=(items[5], items[6]), chunk=2)

    assert torch.autograd.gradcheck(rewritten, items)
    assert torch.autograd.gradcheck(
        lambda *x: attend((x[0], x[1], x[2], x[3]), x[4], bonus=x[5], chunk=2), [*items[:5], some(3, 4)]
    )


def test_the_strongest_decay_leaves_no_trace_and_no_infinity() -> None:
    """Quotients of products of decays would overflow here; nothing of the past may be left."""
    q, k, v, w, memory, *_ = given(True)
    w = torch.full_like(w, -1e4).requires_grad_()
    y, after = attend((q, k, v, w), memory)
    torch.testing.assert_close(y, (q * k).sum(-1, keepdim=True) * v)
    torch.testing.assert_close(after, k[:, :, -1, :, None] * v[:, :, -1, None])
    y.sum().backward()
    assert w.grad is not None and torch.isfinite(w.grad).all()


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(("rows", "time"), [(1, 1), (2, 3), (2, 70)])
def test_transformers_mamba2_layer_gives_the_same(groups: int, rows: int, time: int) -> None:
    spec = mamba2(HIDDEN, num_heads=4, head_dim=12, num_states=5, num_groups=groups)
    layer = built(spec.with_(norm=GroupedRMSNorm.Spec(hidden=48, groups=groups)))
    config = Mamba2Config(
        hidden_size=HIDDEN, num_heads=4, head_dim=12, state_size=5, n_groups=groups, num_hidden_layers=1, chunk_size=16
    )
    theirs = Mamba2Mixer(config, layer_idx=0).eval()
    assert isinstance(layer, Mamba2) and layer.norm is not None
    theirs.load_state_dict(
        {
            "in_proj.weight": torch.cat([layer.gate.weight, layer.inward.weight, layer.step.weight]).detach(),
            "conv1d.weight": layer.conv.weight.detach(),
            "conv1d.bias": layer.conv.bias.detach(),
            "dt_bias": layer.step_bias.weight.detach(),
            "A_log": layer.log_decay.weight.detach(),
            "D": layer.skip.weight.detach(),
            "norm.weight": layer.norm.weight.detach(),
            "out_proj.weight": layer.out.weight.detach(),
        }
    )
    x = numbers(rows, time)
    with torch.no_grad():
        expected = theirs(x)
        assert (whole(layer, x) - expected).abs().max() <= 1e-5 * max(1.0, float(expected.abs().max()))


@pytest.mark.parametrize("time", [1, 5, 70])
def test_transformers_chunked_delta_rule_gives_the_same(time: int) -> None:
    """Qwen3-Next's own torch code, in float32; its tensors have the heads behind the time."""
    q, k, v = (some(2, 3, time, width, seed=seed).float() for seed, width in ((0, 4), (1, 4), (2, 5)))
    q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
    beta, log_kept = torch.sigmoid(some(2, 3, time, 1).float()), -some(2, 3, time, 1, seed=3).float().exp()
    given = [item.transpose(1, 2) for item in (q, k, v)]
    theirs, _ = torch_chunk_gated_delta_rule(
        *given, g=log_kept[..., 0].transpose(1, 2), beta=beta[..., 0].transpose(1, 2)
    )
    found, _ = delta(q / 2, k, v, beta, log_kept, memory=torch.zeros(2, 3, 4, 5))  # they divide by sqrt(4)
    torch.testing.assert_close(found, theirs.transpose(1, 2), rtol=1e-4, atol=1e-5)


def test_the_delta_rule_replaces_what_a_key_held() -> None:
    """With β = 1 and no forgetting, writing twice under one key leaves the second value alone."""
    key, first, second = F.normalize(some(1, 1, 1, 4), dim=-1), some(1, 1, 1, 3, seed=1), some(1, 1, 1, 3, seed=2)
    k, v, one = torch.cat([key, key], dim=2), torch.cat([first, second], dim=2), torch.ones(1, 1, 2, 1).double()
    y, _ = delta(k, k, v, one, 0 * one, memory=torch.zeros(1, 1, 4, 3).double())
    torch.testing.assert_close(y[:, :, 1:], second)


def weights(layer: torch.nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach() for name, parameter in layer.named_parameters()}


def test_the_delta_layer_by_hand() -> None:
    layer = built(gated_delta(HIDDEN, num_heads=4, head_dim=5, value_dim=6, num_key_heads=2), dtype=torch.float64)
    assert isinstance(layer, Delta)
    w, x = weights(layer), numbers(1, TIME, dtype=torch.float64)[0]
    mixed = torch.cat([x @ w[f"{name}.weight"].T for name in "qkv"], dim=-1)
    mixed = F.silu(F.conv1d(F.pad(mixed.T, (3, 0)), w["conv.weight"], groups=44).T)
    q, k, v = mixed[:, :10].view(TIME, 2, 5), mixed[:, 10:20].view(TIME, 2, 5), mixed[:, 20:].view(TIME, 4, 6)
    memory, outputs = torch.zeros(4, 5, 6).double(), []
    for t in range(TIME):
        beta = torch.sigmoid(w["beta.weight"] @ x[t])
        step = F.softplus(w["forget.step.weight"] @ x[t] + w["forget.step_bias.weight"])
        kept = torch.exp(-w["forget.log_decay.weight"].exp() * step)
        said = []
        for head in range(4):
            key, query = k[t, head // 2], q[t, head // 2]
            key, query = key / key.norm(), query / query.norm() / math.sqrt(5)
            memory[head] *= kept[head]
            memory[head] += beta[head] * torch.outer(key, v[t, head] - memory[head].T @ key)
            said.append(F.rms_norm(memory[head].T @ query, (6,), w["norm.weight"], 1e-5))
        outputs.append(w["out.weight"] @ (torch.cat(said) * F.silu(w["gate.weight"] @ x[t])))
    torch.testing.assert_close(whole(layer, x[None])[0], torch.stack(outputs), rtol=1e-5, atol=1e-5)


def test_retention_is_its_parallel_formula() -> None:
    """Equation 5: (Q Kᵀ ⊙ D) V with D = γ^(i-j), positions turned as neighbours."""
    layer = built(retention(HIDDEN, num_heads=3), dtype=torch.float64)
    assert isinstance(layer, Retention)
    w, x = weights(layer), numbers(1, TIME, dtype=torch.float64)[0]
    decay = 1 - 2.0 ** (-5 - torch.arange(3).double())
    torch.testing.assert_close(log_decays(3, like=x).exp(), decay)
    apart = torch.arange(TIME)[:, None] - torch.arange(TIME)
    angle = torch.arange(TIME).double()[:, None] * 10_000.0 ** (-torch.arange(0, 8, 2).double() / 8)
    turn = torch.polar(torch.ones_like(angle), angle)
    q, k, v = ((x @ w[f"{name}.weight"].T).view(TIME, 3, -1).transpose(0, 1) for name in "qkv")
    q, k = (torch.view_as_real(torch.view_as_complex(item.reshape(3, TIME, 4, 2)) * turn).flatten(2) for item in (q, k))
    scores = q @ k.transpose(1, 2) / math.sqrt(8) * (decay[:, None, None] ** apart.clamp(min=0)).tril()
    y = F.rms_norm(scores @ v, (16,), eps=1e-5).transpose(0, 1).flatten(1)
    expected = (y * F.silu(x @ w["gate.weight"].T)) @ w["o.weight"].T
    torch.testing.assert_close(whole(layer, x[None])[0], expected, rtol=1e-5, atol=1e-5)  # angles are float32


def heads(x: Tensor) -> Tensor:
    return x.view(3, 8)


def group_norm(x: Tensor, w: dict[str, Tensor]) -> Tensor:
    return F.group_norm(x.flatten()[None], 3, w["norm.weight"], w["norm.bias"], 64e-5)[0]


def test_rwkv6_by_hand() -> None:
    layer = built(rwkv6(HIDDEN, num_heads=3, share_rank=4, decay_rank=5), dtype=torch.float64)
    w, x = weights(layer), numbers(1, TIME, dtype=torch.float64)[0]
    memory, last, outputs = torch.zeros(3, 8, 8).double(), torch.zeros(HIDDEN).double(), []

    def low(name: str, given: Tensor) -> Tensor:
        return w[f"{name}.base.weight"] + w[f"{name}.up.weight"] @ torch.tanh(w[f"{name}.down.weight"] @ given)

    for token in x:
        seen = token + (last - token) * w["share.weight"]
        mixed = {name: token + (last - token) * low(f"share_{name}", seen) for name in ("r", "k", "v", "g", "decay")}
        r, k, v = (heads(w[f"{name}.weight"] @ mixed[name]) for name in "rkv")
        kept = torch.exp(-torch.exp(heads(low("decay", mixed["decay"]))))
        arrives = k.unsqueeze(2) * v.unsqueeze(1)
        y = (r.unsqueeze(1) @ (memory + heads(w["bonus.weight"]).unsqueeze(2) * arrives)).squeeze(1)
        memory = kept.unsqueeze(2) * memory + arrives
        outputs.append(w["o.weight"] @ (F.silu(w["g.weight"] @ mixed["g"]) * group_norm(y, w)))
        last = token
    torch.testing.assert_close(whole(layer, x[None])[0], torch.stack(outputs), rtol=1e-9, atol=1e-9)


def test_rwkv7_by_hand() -> None:
    layer = built(rwkv7(HIDDEN, num_heads=3, rank=4, first=True), dtype=torch.float64)
    w, x = weights(layer), numbers(1, TIME, dtype=torch.float64)[0]
    memory, last, outputs = torch.zeros(3, 8, 8).double(), torch.zeros(HIDDEN).double(), []
    for token in x:
        mixed = {name: token + (last - token) * w[f"share_{name}.weight"] for name in "rwkvag"}
        r, k, v = (w[f"{name}.weight"] @ mixed[name] for name in "rkv")
        d = w["decay.base.weight"] + w["decay.up.weight"] @ torch.tanh(w["decay.down.weight"] @ mixed["w"])
        a = torch.sigmoid(w["rate.base.weight"] + w["rate.up.weight"] @ (w["rate.down.weight"] @ mixed["a"]))
        g = w["gate.up.weight"] @ torch.sigmoid(w["gate.down.weight"] @ mixed["g"])
        removed = F.normalize(heads(k * w["removal.weight"]), dim=-1)
        k = k * (1 + (a - 1) * w["replacement.weight"])
        kept = heads(torch.exp(-math.exp(-0.5) * torch.sigmoid(d)))
        # the paper's S is ours transposed: S diag(w) - S κ̂ᵀ (a κ̂) + vᵀ k
        moved = torch.diag_embed(kept) - removed.unsqueeze(2) * (heads(a) * removed).unsqueeze(1)
        memory = memory @ moved + heads(v).unsqueeze(2) * heads(k).unsqueeze(1)
        y = (memory @ heads(r).unsqueeze(2)).squeeze(2)
        extra = heads(r * k * w["bonus.weight"]).sum(1, keepdim=True) * heads(v)
        outputs.append(w["o.weight"] @ (g * (group_norm(y, w) + extra.flatten())))
        last = token
    torch.testing.assert_close(whole(layer, x[None])[0], torch.stack(outputs), rtol=1e-9, atol=1e-9)


def test_specs_that_do_not_fit_are_refused() -> None:
    two, six, seven = (
        mamba2(HIDDEN, num_heads=4, head_dim=6),
        rwkv6(HIDDEN, num_heads=3),
        rwkv7(24, num_heads=3, first=True),
    )
    kept, rule = retention(HIDDEN, num_heads=3), gated_delta(HIDDEN, num_heads=4, head_dim=5, num_key_heads=2)
    for spec, changes in (
        (two, {"num_heads": 5}),
        (two, {"num_groups": 3}),
        (two, {"gate": two.step}),
        (two, {"skip": two.skip.with_(size=(3,))}),
        (six, {"num_heads": 5}),
        (six, {"bonus": six.bonus.with_(size=(3,))}),
        (seven, {"num_heads": 7}),
        (seven, {"gate": seven.gate.with_(up=seven.gate.up.with_(out_features=5))}),
        (kept, {"num_heads": 5}),
        (kept, {"gate": kept.q}),
        (kept, {"position": Rope.Spec(rotary_dim=10)}),
        (rule, {"num_key_heads": 3}),
        (rule, {"beta": rule.q}),
    ):
        with pytest.raises(ShapeError):
            spec.with_(**changes)
    with pytest.raises(ShapeError):
        GroupedRMSNorm.Spec(hidden=10, groups=3)
    with pytest.raises(ShapeError):
        GroupedLayerNorm.Spec(hidden=10, groups=0)
    with pytest.raises(ShapeError):
        six.decay.with_(up=six.decay.down)
