"""Sparse autoencoders against slow loops, closed forms and planted dictionaries, and around the sites of a model."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
import toys
from torch import Tensor

from almanac.core.errors import SelectionError, ShapeError, TrainingError
from almanac.core.technique import initialise
from almanac.interpret.sparse_autoencoder import (
    Learning,
    Replacing,
    SparseAutoencoder,
    activations_at,
    around,
    normalise_columns,
    objective,
    project_gradient,
    recovery,
    revive,
    train_dictionary,
    unexplained,
)
from almanac.nn.stack import Decoder

HIDDEN, FEATURES = 6, 10


@pytest.fixture
def autoencoder() -> SparseAutoencoder:
    made = SparseAutoencoder.Spec(hidden=HIDDEN, features=FEATURES).build()
    made.initialise(0)
    with torch.no_grad():
        made.bias.normal_(generator=torch.Generator().manual_seed(1))
        made.centre.normal_(generator=torch.Generator().manual_seed(2))
        made.scale.fill_(1.7)
    return made


@pytest.fixture
def x() -> Tensor:
    return torch.randn(7, HIDDEN, generator=torch.Generator().manual_seed(3))


def test_the_objective_is_what_the_paper_writes(autoencoder: SparseAutoencoder, x: Tensor) -> None:
    expected = 0.0
    a = autoencoder.requires_grad_(False)
    for row in x.tolist():
        scaled = [value / float(a.scale) for value in row]
        features = []
        for j in range(FEATURES):
            drive = sum(float(a.encoder[j, i]) * (scaled[i] - float(a.centre[i])) for i in range(HIDDEN))
            features.append(max(0.0, drive + float(a.bias[j])))
        for i in range(HIDDEN):
            made = float(a.centre[i]) + sum(float(a.decoder[i, j]) * features[j] for j in range(FEATURES))
            expected += (made - scaled[i]) ** 2
        expected += 0.7 * sum(features)
    assert float(objective(a, x, 0.7)[0]) == pytest.approx(expected / len(x), rel=1e-5)


def test_one_feature_is_shrunk_by_half_the_penalty() -> None:
    made = SparseAutoencoder.Spec(hidden=1, features=1).build()
    with torch.no_grad():
        made.encoder.fill_(1.0)
        made.decoder.fill_(1.0)
        made.bias.fill_(-0.2)  # the optimum of (s - f)² + 0.4 f is f = s - 0.2
    objective(made, torch.tensor([[1.0], [2.0]]), 0.4)[0].backward()
    assert made.bias.grad is not None
    assert abs(float(made.bias.grad)) < 1e-6


def test_columns_have_unit_norm_and_gradients_do_not_stretch_them(autoencoder: SparseAutoencoder, x: Tensor) -> None:
    with torch.no_grad():
        autoencoder.decoder.mul_(3.0)
    normalise_columns(autoencoder)
    torch.testing.assert_close(autoencoder.decoder.norm(dim=0), torch.ones(FEATURES))
    objective(autoencoder, x, 0.1)[0].backward()
    assert autoencoder.decoder.grad is not None
    before = autoencoder.decoder.grad.clone()
    project_gradient(autoencoder)
    along = (autoencoder.decoder.grad * autoencoder.decoder).sum(dim=0)
    assert float(along.detach().abs().max()) < 1e-5
    assert not torch.equal(before, autoencoder.decoder.grad)


def test_only_dead_units_are_revived_and_towards_what_is_missed(autoencoder: SparseAutoencoder) -> None:
    dead = torch.zeros(FEATURES, dtype=torch.bool)
    dead[[2, 5]] = True
    before = {name: tensor.clone() for name, tensor in autoencoder.state_dict().items()}
    missed = 500 * torch.ones(1, HIDDEN)  # one input that nothing explains, among many that are explained
    with torch.no_grad():
        explained = (autoencoder.centre * autoencoder.scale).repeat(20, 1)
        autoencoder.bias.fill_(-1.0)
    revive(autoencoder, torch.cat([explained, missed, missed]), dead, torch.Generator().manual_seed(0))
    direction = F.normalize(missed[0] / autoencoder.scale - autoencoder.centre, dim=0).detach()
    for unit in (2, 5):
        torch.testing.assert_close(autoencoder.decoder[:, unit].detach(), direction)
        assert float(autoencoder.bias[unit].detach()) == 0.0
    torch.testing.assert_close(autoencoder.decoder[:, ~dead].detach(), before["decoder"][:, ~dead])
    torch.testing.assert_close(autoencoder.encoder[~dead].detach(), before["encoder"][~dead])


def test_planted_directions_are_found_and_random_ones_are_not() -> None:
    generator = torch.Generator().manual_seed(0)
    truth = F.normalize(torch.randn(12, 8, generator=generator), dim=-1)
    active = torch.rand(6000, 12, generator=generator) < 0.1
    x = (active * (0.5 + torch.rand(6000, 12, generator=generator))) @ truth
    learned = train_dictionary(x, 12, Learning(sparsity=0.6, steps=700, rows=256, rate=1e-2, revive_every=150))
    again = train_dictionary(x, 12, Learning(sparsity=0.6, steps=700, rows=256, rate=1e-2, revive_every=150))
    assert torch.equal(learned.decoder, again.decoder)
    torch.testing.assert_close(learned.decoder.norm(dim=0), torch.ones(12))
    found = float(recovery(truth, learned.decoder.detach().T).mean())
    by_chance = float(recovery(truth, torch.randn(12, 8, generator=generator)).mean())
    assert found > 0.9 > 0.8 > by_chance
    assert unexplained(learned, x) < 0.3


def test_recovery_and_unexplained_by_hand() -> None:
    truth = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    torch.testing.assert_close(recovery(truth, torch.tensor([[3.0, 4.0]])), torch.tensor([0.6, 0.8]))
    silent = SparseAutoencoder.Spec(hidden=2, features=3).build()  # all zero: it gives its centre
    x = torch.tensor([[1.0, 2.0], [3.0, 6.0]])
    with torch.no_grad():
        silent.centre.copy_(x.mean(dim=0))
    assert unexplained(silent, x) == pytest.approx(1.0)


def _model() -> Decoder:
    model = initialise(toys.plain().build(), seed=0)
    assert isinstance(model, Decoder)
    return model.eval()


def _perfect(width: int) -> SparseAutoencoder:
    """Both signs of every axis: reconstructs anything."""
    made = SparseAutoencoder.Spec(hidden=width, features=2 * width).build()
    with torch.no_grad():
        made.encoder.copy_(torch.cat([torch.eye(width), -torch.eye(width)]))
        made.decoder.copy_(made.encoder.T)
    return made


@pytest.mark.parametrize("path", ["layers.1", "layers.1.mixer", "layers.1.channel"])
def test_around_a_site_it_reads_replaces_and_leaves_no_trace(path: str) -> None:
    model, tokens = _model(), torch.arange(12).view(2, 6)
    with torch.no_grad():
        plain = model(tokens)
        with around(model, path, Replacing(_perfect(toys.HIDDEN))):
            torch.testing.assert_close(model(tokens), plain, atol=1e-5, rtol=1e-5)
        silent = SparseAutoencoder.Spec(hidden=toys.HIDDEN, features=4).build()
        with around(model, path, Replacing(silent, keep_error=True)):
            torch.testing.assert_close(model(tokens), plain, atol=1e-6, rtol=1e-6)
        with around(model, path, Replacing(silent)):
            seen = activations_at(model, path, tokens)
            assert not torch.allclose(model(tokens), plain, atol=1e-4)
        with around(model, path, Replacing(_perfect(toys.HIDDEN), torch.zeros_like, keep_error=True)):
            assert not torch.allclose(model(tokens), plain, atol=1e-4)
        assert torch.equal(model(tokens), plain)
    assert seen.shape == (12, toys.HIDDEN)
    assert not seen.any()  # the reading stands outside of the replacement, which gives the (zero) centre
    captured: list[Tensor] = []
    module = model.get_submodule(path)
    module.register_forward_hook(
        lambda _, __, output: captured.append(output[0] if isinstance(output, tuple) else output)
    )
    found = activations_at(model, path, tokens)
    torch.testing.assert_close(found, captured[0].detach().flatten(0, 1))


def test_what_does_not_fit_is_refused() -> None:
    model = _model()
    with (
        pytest.raises(ShapeError, match="a dictionary belongs to one"),
        around(model, "layers.*.mixer", Replacing(_perfect(2))),
    ):
        pass
    with pytest.raises(SelectionError), around(model, "nowhere", Replacing(_perfect(2))):
        pass
    with pytest.raises(ShapeError, match="width 64"), around(model, "layers.0", Replacing(_perfect(2))):
        model(torch.zeros(1, 3, dtype=torch.int64))
    assert not model.get_submodule("layers.0").chain
    with pytest.raises(ShapeError):
        SparseAutoencoder.Spec(hidden=0, features=3).build()
    with pytest.raises(ShapeError):
        train_dictionary(torch.zeros(4), 3)
    with pytest.raises(TrainingError):
        train_dictionary(torch.ones(4, 2), 3)
