"""The contract of every technique, walked from the catalog, on every toy model and every weight format.

A pair that is refused must say so with UnsupportedError, and the reason must stand in ``docs/matrix.md``.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
from pathlib import Path

import pytest
import torch
import toys
from torch import Tensor, nn

from almanac.adapt.lora import Lora
from almanac.compress.quantize.blocks import Blocks
from almanac.compress.quantize.int8 import Int8
from almanac.core.catalog import technique_classes, techniques
from almanac.core.errors import AlmanacError, SelectionError, UnsupportedError
from almanac.core.site import AROUND, Site
from almanac.core.technique import Attachment, Plan, Rewrite, Technique, assemble
from almanac.nn.linear_maps import linear_maps
from almanac.nn.stack import Decoder

FORMATS: dict[str, tuple[Technique, ...]] = {
    "dense": (),
    "int8": (Int8(),),
    "Q4_1": (Blocks(format="Q4_1", targets="**"),),
    "Q8_0": (Blocks(format="Q8_0", targets="**"),),
    "mixed": (Blocks(format="Q4_1", targets="layers.**"), Int8(targets="embed")),
}
CLASSES: dict[str, type[Technique]] = {
    cls.kind(): cls for module in techniques().values() for cls in technique_classes(module)
}
ATTACHMENTS = sorted(kind for kind, cls in CLASSES.items() if issubclass(cls, Attachment))
MATRIX = Path(__file__).parents[2] / "docs" / "matrix.md"
TIME = 26
PACKED = ("llama", "jamba")  # models whose every format training meets
LEAVES = ("llama", "jamba", "gpt_oss", "opt")  # between them every kind of leaf
TOLERANCE = 1e-5


def _cells() -> list[tuple[str, str, str]]:
    """Techniques that train on models of every kind of module, those that only change how weights are held on every kind
    of leaf, all of them on one model in every format; what trains meets packed bases on a few models more.

    docs/matrix.md tries the rest less deeply. ALMANAC_CONTRACTS=all walks the whole product of techniques, families and
    formats.
    """
    whole = os.environ.get("ALMANAC_CONTRACTS") == "all"
    product = itertools.product(ATTACHMENTS, sorted(toys.specs() if whole else toys.varied()), FORMATS)
    return [
        (kind, name, format)
        for kind, name, format in product
        if whole
        or name == "plain"
        or (format == "dense" and (CLASSES[kind].trains or name in LEAVES))
        or (CLASSES[kind].trains and name in PACKED)
    ]


every_class = pytest.mark.parametrize("kind", sorted(CLASSES))
every_cell = pytest.mark.parametrize(("kind", "name", "format"), _cells())


@dataclasses.dataclass
class Cell:
    """One technique about to act on one model in one weight format."""

    technique: Attachment
    model: Decoder
    name: str
    format: str

    @property
    def plan(self) -> Plan:
        return Plan(techniques=(*FORMATS[self.format], self.technique))

    def attach(self) -> None:
        """Attaches, or skips the test with the refusal's reason, which the matrix must show."""
        try:
            self.technique.attach(self.model)
        except UnsupportedError as error:
            assert error.cause.split(":")[-1].strip() in MATRIX.read_text()
            pytest.skip(str(error))

    def attach_stirred(self, *, seed: int = 3) -> None:
        """Attaches, then moves what the technique brought away from its start."""
        before = {id(parameter) for parameter in self.model.parameters()}
        self.attach()
        toys.stir((item for item in self.model.parameters() if id(item) not in before), seed=seed)


def cell_of(kind: str, name: str, format: str) -> Cell:
    technique = CLASSES[kind]()
    assert isinstance(technique, Attachment)
    return Cell(technique, toys.toy(name, *FORMATS[format]), name, format)


def outputs(model: nn.Module, time: int = TIME) -> Tensor:
    with torch.no_grad():
        return model(toys.tokens(2, time))


def keys(model: nn.Module) -> set[str]:
    return {name for name, _ in model.named_parameters(remove_duplicate=False)}


def trainable(model: nn.Module) -> set[str]:
    return {name for name, item in model.named_parameters(remove_duplicate=False) if item.requires_grad}


def around(name: str) -> bool:
    return AROUND in name.split(".")


# --- what a technique must say of itself


@every_class
def test_a_technique_declares_what_it_promises(kind: str) -> None:
    """Silence is never an answer: each class states the three promises itself, whatever they are."""
    cls = CLASSES[kind]
    for promise in ("identity_at_start", "folds", "trains"):
        assert isinstance(vars(cls).get(promise), bool), f"{kind} does not declare {promise}"
    assert issubclass(cls, Attachment | Rewrite)
    known = {*toys.specs(), *FORMATS, *(family for family in toys.family_specs())}
    assert set(cls.unsupported) <= known
    assert all(isinstance(reason, str) and reason for reason in cls.unsupported.values())


@every_class
def test_a_technique_is_a_value_with_defaults(kind: str) -> None:
    technique = CLASSES[kind]()
    assert Technique.from_dict(json.loads(json.dumps(technique.to_dict()))) == technique
    assert kind.startswith(technique.title)
    plan = Plan().then(technique)
    assert Plan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan
    assert plan.without(technique) == Plan()


@every_cell
def test_declared_refusals_are_raised(kind: str, name: str, format: str) -> None:
    cell = cell_of(kind, name, format)
    for place in (name, format):
        reason = cell.technique.unsupported.get(place)
        if reason is not None:
            with pytest.raises(UnsupportedError, match=reason):
                cell.technique.attach(cell.model)
            assert reason in MATRIX.read_text()


# --- what it does to a model


@every_cell
def test_base_keys_are_kept(kind: str, name: str, format: str) -> None:
    """Wrappers add keys of their own; a stored weight puts its codes below the weight's key. Nothing is renamed."""
    cell = cell_of(kind, name, format)
    before = keys(cell.model)
    cell.attach()
    after = keys(cell.model)
    assert after, "nothing is left"
    for key in before - after:
        owner = key.removesuffix(".codes") if key.endswith(".codes") else key
        assert any(other.startswith(f"{owner}.") or other == owner for other in after), key
    for key in after - before:
        owner = key.rpartition(".")[0]
        assert around(key) or owner in before or f"{owner}.codes" in before, key
    if format == "dense":
        assert after != before, "it did nothing"


@every_cell
def test_gradients_go_where_promised(kind: str, name: str, format: str) -> None:
    cell = cell_of(kind, name, format)
    before, trainable_before = keys(cell.model), trainable(cell.model)
    cell.attach_stirred()
    own = keys(cell.model) - before
    if not cell.technique.trains:
        assert trainable(cell.model) <= trainable_before
        return
    assert trainable(cell.model) == own
    torch.nn.functional.cross_entropy(
        cell.model(toys.tokens(2, TIME)).flatten(0, 1), toys.tokens(2, TIME, seed=1).flatten()
    ).backward()
    for key, parameter in cell.model.named_parameters():
        assert (parameter.grad is not None and bool(parameter.grad.any())) == (key in own), key


@every_cell
def test_gradients_are_those_of_the_expanded_weights(kind: str, name: str, format: str) -> None:
    """Training over stored weights is training over the dense weights they stand for."""
    cell, dense = cell_of(kind, name, format), cell_of(kind, name, format)
    if not cell.technique.trains:
        return
    for leaf in toys.leaves(dense.model).values():
        leaf.set_weight(leaf.dense_weight().detach().clone())
    for one in (cell, dense):
        one.attach_stirred()
        one.model(toys.tokens(2, TIME)).square().mean().backward()
    expected = dict(dense.model.named_parameters())
    for key in trainable(cell.model):
        got, want = cell.model.get_parameter(key).grad, expected[key].grad
        assert got is not None
        assert want is not None
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-6 + 1e-4 * float(want.abs().max()))


@every_cell
def test_identity_at_start(kind: str, name: str, format: str) -> None:
    cell = cell_of(kind, name, format)
    before = outputs(cell.model)
    cell.attach()
    assert torch.equal(outputs(cell.model), before) or not cell.technique.identity_at_start


@every_cell
def test_fold_equals_forward(kind: str, name: str, format: str) -> None:
    cell = cell_of(kind, name, format)
    base = outputs(cell.model)
    before = keys(cell.model)
    cell.attach_stirred()
    attached, keys_attached = outputs(cell.model), keys(cell.model)
    if cell.technique.folds and format == "dense":
        cell.technique.fold(cell.model)
        assert keys(cell.model) == before
        folded = outputs(cell.model)
        torch.testing.assert_close(folded, attached, rtol=0, atol=TOLERANCE * float(attached.abs().max()))
        assert float((folded - base).abs().max()) > 1e-2  # the effect was there to be folded
        with pytest.raises(AlmanacError):
            cell.technique.fold(cell.model)
    else:
        with pytest.raises(UnsupportedError):
            cell.technique.fold(cell.model)
        assert keys(cell.model) == keys_attached
        assert torch.equal(outputs(cell.model), attached)


def test_folding_leaves_the_given_tensors_alone() -> None:
    """A model holds the tensors it was assembled from; folding must not write into what a caller still owns."""
    tensors = toys.tensors_of(toys.toy("llama"))
    kept = {name: tensor.clone() for name, tensor in tensors.items()}
    model = assemble(toys.specs()["llama"], Plan(), tensors)
    technique = Lora()
    technique.attach(model)
    toys.stir(item for item in model.parameters() if item.requires_grad)
    technique.fold(model)
    assert all(torch.equal(tensor, kept[name]) for name, tensor in tensors.items())


@every_cell
def test_detach_restores(kind: str, name: str, format: str) -> None:
    cell = cell_of(kind, name, format)
    before, keys_before, trainable_before = outputs(cell.model), keys(cell.model), trainable(cell.model)
    cell.attach_stirred()
    attached = outputs(cell.model)
    try:
        cell.technique.detach(cell.model)
    except UnsupportedError:
        assert torch.equal(outputs(cell.model), attached)
        return
    assert not torch.equal(attached, before)
    assert torch.equal(outputs(cell.model), before)
    assert keys(cell.model) == keys_before
    assert list(dict(cell.model.named_modules())) == list(dict(toys.toy(name, *FORMATS[format]).named_modules()))
    assert trainable(cell.model) == trainable_before
    with pytest.raises(SelectionError):
        cell.technique.detach(cell.model)


NAMED = [kind for kind in ATTACHMENTS if "name" in {field.name for field in dataclasses.fields(CLASSES[kind])}]


@pytest.mark.parametrize("kind", NAMED)
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_two_under_different_names_compose(kind: str, format: str, order: tuple[int, int]) -> None:
    """Each can be detached first; what remains is what the other alone would have been."""
    pair = [CLASSES[kind]().with_(name=name) for name in ("first", "second")]

    def build(*chosen: int) -> Decoder:
        model = toys.toy("mistral", *FORMATS[format])
        for index in chosen:
            before = {id(item) for item in model.parameters()}
            technique = pair[index]
            assert isinstance(technique, Attachment)
            technique.attach(model)
            toys.stir((item for item in model.parameters() if id(item) not in before), seed=index)
        return model

    both = build(0, 1)
    own = {key for key in keys(both) if around(key)}
    assert trainable(both) == own
    alone = [outputs(build(index)) for index in (0, 1)]
    together = outputs(both)
    assert all(not torch.equal(together, output) for output in alone)
    first, second = (pair[index] for index in order)
    assert isinstance(first, Attachment)
    assert isinstance(second, Attachment)
    with pytest.raises(SelectionError):
        first.attach(both)
    assert trainable(both) == own
    assert torch.equal(outputs(both), together)
    first.detach(both)
    assert torch.equal(outputs(both), alone[order[1]])
    assert trainable(both) == {key for key in keys(both) if around(key)}
    second.detach(both)
    assert torch.equal(outputs(both), outputs(toys.toy("mistral", *FORMATS[format])))


@every_cell
def test_saved_and_loaded_is_the_same(kind: str, name: str, format: str) -> None:
    cell = cell_of(kind, name, format)
    cell.attach_stirred()
    expected = outputs(cell.model)
    spec = Decoder.Spec.from_dict(json.loads(json.dumps(toys.specs()[name].to_dict())))
    plan = Plan.from_dict(json.loads(json.dumps(cell.plan.to_dict())))
    loaded = assemble(spec, plan, toys.tensors_of(cell.model))
    assert torch.equal(outputs(loaded), expected)
    assert trainable(loaded) == trainable(cell.model)


@every_cell
def test_replay_on_meta_gives_the_same_shapes(kind: str, name: str, format: str) -> None:
    cell = cell_of(kind, name, format)
    cell.attach()
    with torch.device("meta"):
        _, ghost = cell.plan.replay(toys.specs()[name], toys.specs()[name].build())

    def shapes(model: nn.Module) -> dict[str, tuple[torch.Size, torch.dtype, bool]]:
        return {key: (item.shape, item.dtype, item.requires_grad) for key, item in model.named_parameters()}

    assert shapes(ghost) == shapes(cell.model)
    assert all(item.is_meta for item in ghost.parameters())


@every_cell
def test_cached_decoding_equals_the_full_forward(kind: str, name: str, format: str) -> None:
    cell = cell_of(kind, name, format)
    cell.attach_stirred()
    if cell.technique.rounds_activations and format == "dense":
        cell.model.double()  # so that no value lies within rounding of the edge of a step
    tokens, state, pieces = toys.tokens(2, TIME), cell.model.init_state(2, TIME), []
    with torch.no_grad():
        for chunk in tokens.split([1, 7, 3, 1, TIME - 12], dim=1):
            hidden, state = cell.model.hidden(chunk, state)
            pieces.append(cell.model.logits(hidden))
    torch.testing.assert_close(torch.cat(pieces, dim=1), outputs(cell.model), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("kind", ATTACHMENTS)
@pytest.mark.parametrize("format", FORMATS)
def test_forward_compiles_as_one_graph(kind: str, format: str) -> None:
    torch._dynamo.reset()
    cell = cell_of(kind, "plain", format)
    cell.attach_stirred()
    compiled = torch.compile(cell.model, backend="eager", fullgraph=True)
    torch.testing.assert_close(outputs(compiled), outputs(cell.model), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("kind", [kind for kind in ATTACHMENTS if CLASSES[kind].trains])
def test_training_compiles_as_one_graph(kind: str) -> None:
    """Backward too, over int8 weights."""
    torch._dynamo.reset()
    gradients = []
    for compiled in (True, False):
        cell = cell_of(kind, "llama", "int8")
        cell.attach_stirred()
        run = torch.compile(cell.model, backend="eager", fullgraph=True) if compiled else cell.model
        run(toys.tokens(2, TIME)).square().mean().backward()
        gradients.append({key: item.grad for key, item in cell.model.named_parameters() if item.requires_grad})
    for key, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][key], rtol=1e-4, atol=1e-6)


@every_cell
def test_sites_are_chosen_by_pattern(kind: str, name: str, format: str) -> None:
    """``targets`` decides where it acts, and a pattern that names nothing is an error that changes nothing."""
    cell = cell_of(kind, name, format)
    if "targets" not in {field.name for field in dataclasses.fields(cell.technique)}:
        return
    before = outputs(cell.model)
    flags = trainable(cell.model)
    nowhere = cell.technique.with_(targets="layers.*.nothing")
    with pytest.raises(SelectionError):
        nowhere.attach(cell.model)
    assert trainable(cell.model) == flags
    assert torch.equal(outputs(cell.model), before)
    chosen = next(path for path in linear_maps(cell.model, "layers.1.**"))
    cell.technique.with_(targets=chosen).attach(cell.model)
    modules = dict(cell.model.named_modules())
    untouched = dict(toys.toy(name, *FORMATS[format]).named_modules())
    changed = {path for path in modules.keys() - untouched.keys() if not path.startswith(chosen)}
    assert not changed
    wrapped = {path for path, module in modules.items() if isinstance(module, Site) and module.chain}
    assert wrapped <= {chosen}
