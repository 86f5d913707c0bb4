"""The contract of every family, walked from the folder: a new family file is tested here without being listed."""

from __future__ import annotations

import copy
import json

import pytest
import torch
import toys
from torch import Tensor

from almanac.core.batch import pad_rows
from almanac.core.errors import FileFormatError, RequestError, ShapeError, UnsupportedError
from almanac.core.site import Leaf, Site
from almanac.core.spec import Normal
from almanac.core.state import Context, StackState
from almanac.core.technique import Plan, assemble, initialise
from almanac.models.family import Fields, families, family_for, family_for_gguf
from almanac.models.hub_folder import family_of, shapes_of
from almanac.models.tensor_layout import to_ours, to_theirs
from almanac.nn.attention.full import Attention
from almanac.nn.attention.masks import Causal, Mask
from almanac.nn.linear_maps import LinearMap, linear_maps
from almanac.nn.stack import Decoder

NAMES = sorted(toys.specs())
FAMILIES = sorted(toys.family_specs())
TIME = 30  # several windows, so that windows matter
TOLERANCE = 1e-5

every_toy = pytest.mark.parametrize("name", NAMES)
every_family = pytest.mark.parametrize("name", FAMILIES)


@pytest.fixture(scope="module")
def models() -> dict[str, Decoder]:
    """One model per toy; tests leave them as they found them."""
    return {name: toys.toy(name) for name in NAMES}


@pytest.fixture(params=NAMES)
def model(request: pytest.FixtureRequest, models: dict[str, Decoder]) -> Decoder:
    return models[request.param]


def run(model: Decoder, tokens: Tensor, state: StackState, chunks: list[int]) -> tuple[Tensor, StackState]:
    """Logits of ``tokens`` fed in ``chunks`` (the rest in one piece), and the state after them."""
    pieces = []
    sizes = [*chunks, tokens.shape[1] - sum(chunks)]
    with torch.no_grad():
        for piece in tokens.split([size for size in sizes if size], dim=1):
            hidden, after = model.hidden(piece, state)
            assert after is not None
            state = after
            pieces.append(model.logits(hidden))
    return torch.cat(pieces, dim=1), state


def logits_of(model: Decoder, tokens: Tensor, context: Context | None = None) -> Tensor:
    with torch.no_grad():
        return model(tokens, context)


# --- the spec and its names


@every_toy
def test_spec_survives_json_with_its_digest(name: str) -> None:
    spec = toys.specs()[name]
    text = json.dumps(spec.to_dict())
    back = Decoder.Spec.from_dict(json.loads(text))
    assert back == spec
    assert back.digest() == spec.digest()
    assert spec.with_(context_length=spec.context_length - 1).digest() != spec.digest()
    changed = spec.replace("embed", scale=0.5)
    assert changed.digest() != spec.digest()
    assert Decoder.Spec.from_dict(changed.to_dict()) == changed


def test_digests_are_those_of_other_processes() -> None:
    """A digest names files that outlive the process, so the canonical form is pinned by hand."""
    from almanac.nn.norm import RMSNorm

    canonical = '{"epsilon":0.5,"hidden":8,"kind":"nn.norm.RMSNorm"}'
    import hashlib

    assert RMSNorm.Spec(hidden=8, epsilon=0.5).digest() == hashlib.sha256(canonical.encode()).hexdigest()


@every_toy
def test_spec_path_is_module_path_is_checkpoint_key(name: str, models: dict[str, Decoder]) -> None:
    spec, model = toys.specs()[name], models[name]
    modules = dict(model.named_modules())
    missing = [path for path, _ in spec.walk() if path not in modules]
    assert not missing
    owners = {key.rpartition(".")[0] for key in model.state_dict()}
    assert owners <= {path for path, _ in spec.walk()}
    for path, item in spec.walk():
        assert type(item.build()) is type(modules[path])


@every_family
def test_name_table_names_every_parameter_once(name: str, models: dict[str, Decoder]) -> None:
    family = family_for(name)
    owners = {key.rpartition(".")[0] for key in models[name].state_dict()}
    untied = toys.toy_of(family, tie_word_embeddings=False)
    rows = family.rows(untied)
    owners_untied = {key.rpartition(".")[0] for key in untied.build().state_dict()}
    named = [owner for row in rows for owner in row.our_names]
    assert owners_untied <= set(named)
    assert owners == owners_untied - {"head.projection"}
    theirs = [name for row in rows for name in row.theirs_of("weight")]
    assert len(set(theirs)) == len(theirs)
    assert not any("{" in name for name in [*theirs, *named])
    in_gguf = [row.gguf for row in rows if row.gguf]
    assert len(set(in_gguf)) == len(in_gguf)
    tensors = toys.tensors_of(toys.model_of(untied))
    back, unknown = to_ours(rows, shapes_of(untied), to_theirs(rows, tensors))
    assert unknown == []
    assert back.keys() == tensors.keys()
    assert all(torch.equal(back[name], tensors[name]) for name in tensors)


@every_family
@pytest.mark.parametrize("changes", [{}, {"tie_word_embeddings": False}, {"sliding_window": None}, {"rope_theta": 7e4}])
def test_family_writes_what_it_reads(name: str, changes: dict[str, object]) -> None:
    family = family_for(name)
    if changes.get("sliding_window", 0) is None:
        changes = changes | {"use_sliding_window": False}
    spec = toys.toy_of(family, **changes)
    config = family.write(spec)
    assert config is not None
    config = json.loads(json.dumps(config))
    fields = Fields(config)
    assert family.read(fields) == spec
    assert fields.not_understood() == {}
    found = family_of(spec, preferred=name)
    assert found is not None
    assert found[0].model_type == name
    assert family_of(toys.specs()["plain"]) is None


def test_families_are_found_by_name_and_architecture() -> None:
    assert next(family.model_type for family in families()) == "llama"
    for family in families():
        assert family_for(family.model_type) == family
        if family.gguf:
            assert family_for_gguf(family.gguf).gguf == family.gguf


# --- causality, packing, padding


def test_no_token_sees_the_future(model: Decoder) -> None:
    row = toys.tokens(1, TIME)
    before = logits_of(model, row)
    for place in (1, 11, TIME - 1):
        changed = row.clone()
        changed[0, place] = (row[0, place] + 1) % toys.VOCAB
        after = logits_of(model, changed)
        assert torch.equal(after[:, :place], before[:, :place])
        assert not torch.equal(after[:, place], before[:, place])


def test_the_past_is_seen_as_far_as_the_masks_allow(model: Decoder) -> None:
    """Which tokens a position depends on, by gradient, is what the layers' masks compose to."""
    embedded: list[Tensor] = []

    def keep(module: torch.nn.Module, inputs: object, output: Tensor) -> Tensor:
        embedded.append(output.detach().requires_grad_())
        return embedded[-1]

    hook = model.embed.register_forward_hook(keep)
    model(toys.tokens(1, TIME))[0, -1].sum().backward()
    hook.remove()
    model.zero_grad()
    assert embedded[0].grad is not None
    seen = embedded[0].grad[0].abs().amax(dim=1) > 0
    positions = torch.arange(TIME)
    reach = torch.eye(TIME, dtype=torch.bool)
    for layer in model.layers:
        masks = [vars(module)["mask"] for module in layer.modules() if isinstance(vars(module).get("mask"), Mask)]
        for mask in masks or [Causal()]:  # recurrent layers see the whole past
            reach = (reach.float() @ mask.allowed(positions[:, None], positions[None, :]).float()) > 0
    assert torch.equal(seen, reach[-1])


def packed(rows: list[list[int]]) -> tuple[Tensor, Context]:
    """All rows one after another in a single row, each with its own segment and positions from 0."""
    tokens = torch.tensor([[token for row in rows for token in row]])
    segments = torch.tensor([[index for index, row in enumerate(rows) for _ in row]])
    positions = torch.tensor([[place for row in rows for place in range(len(row))]])
    return tokens, Context(positions=positions, segments=segments)


def test_packed_segments_are_isolated(model: Decoder) -> None:
    rows = [toys.tokens(1, size, seed=size)[0].tolist() for size in (5, 17, 1, 9)]
    tokens, context = packed(rows)
    together = logits_of(model, tokens, context)[0].split([len(row) for row in rows])
    for row, part in zip(rows, together, strict=True):
        torch.testing.assert_close(part, logits_of(model, torch.tensor([row]))[0], rtol=0, atol=TOLERANCE)
    rows[1][3] = (rows[1][3] + 1) % toys.VOCAB
    tokens, context = packed(rows)
    again = logits_of(model, tokens, context)[0].split([len(row) for row in rows])
    for index in (0, 2, 3):  # sums along a packed row may round otherwise; what is masked is masked exactly
        exact = all(type(layer.mixer) is Attention for layer in model.layers)
        torch.testing.assert_close(again[index], together[index], rtol=0, atol=0 if exact else TOLERANCE)


def test_padding_changes_nothing(model: Decoder) -> None:
    rows = [toys.tokens(1, size, seed=size)[0].tolist() for size in (13, 4, 20)]
    masks = [[True] * len(row) for row in rows]
    outputs = []
    for pad_id in (0, 5):
        batch = pad_rows(rows, masks, pad_id=pad_id)
        outputs.append(logits_of(model, batch.tokens, Context(positions=batch.positions, segments=batch.segments)))
    assert all(torch.isfinite(output).all() for output in outputs)
    for index, row in enumerate(rows):
        assert torch.equal(outputs[0][index, : len(row)], outputs[1][index, : len(row)])
        single = logits_of(model, torch.tensor([row]))[0]
        torch.testing.assert_close(outputs[0][index, : len(row)], single, rtol=0, atol=TOLERANCE)


# --- states


@pytest.mark.parametrize("chunk", [1, 3, 7])
def test_cached_decoding_equals_the_full_forward(model: Decoder, chunk: int) -> None:
    tokens = toys.tokens(2, TIME)
    state = model.init_state(2, 4)  # smaller than needed, so that buffers grow
    cached, state = run(model, tokens, state, [chunk] * ((TIME - 1) // chunk))
    assert state.lengths == [TIME, TIME]
    torch.testing.assert_close(cached, logits_of(model, tokens), rtol=0, atol=TOLERANCE)


def test_rows_of_different_lengths_decode_as_if_alone(model: Decoder) -> None:
    """Three prompts of different lengths are joined and decoded together: the tokens are those of each alone."""
    prompts = [toys.tokens(1, size, seed=size)[0].tolist() for size in (3, 12, 8)]
    count = 16
    expected = [toys.greedy(model, prompt, count) for prompt in prompts]
    states, last = [], []
    for prompt in prompts:
        logits, state = run(model, torch.tensor([prompt]), model.init_state(1, 32), [])
        states.append(state)
        last.append(int(logits[0, -1].argmax()))
    state = states[0].join(states[1:])
    assert state.lengths == [3, 12, 8]
    produced = [[token] for token in last]
    for _ in range(count - 1):
        logits, state = run(model, torch.tensor([[row[-1]] for row in produced]), state, [])
        for row, values in zip(produced, logits[:, -1], strict=True):
            row.append(int(values.argmax()))
    assert produced == expected


def trim(state: StackState, lengths: list[int]) -> list[int]:
    """Trims, and returns what is kept: all, where the state keeps no past and says so; then nothing of it may change."""
    before = state.lengths
    try:
        state.trim(lengths)
    except UnsupportedError:
        assert state.lengths == before
        assert all(layer.lengths == before for layer in state.layers)
        return before
    assert state.lengths == lengths
    return lengths


def test_trimmed_and_appended_equals_straight(model: Decoder) -> None:
    row, other = toys.tokens(2, 20), toys.tokens(2, 10, seed=9)
    _, state = run(model, row, model.init_state(2, 32), [9])
    (past, _) = trim(state, [8, 8])
    straight = torch.cat([row[:, :past], other], dim=1)
    tail, state = run(model, other, state, [1, 4])
    assert state.lengths == [past + 10] * 2
    torch.testing.assert_close(tail, logits_of(model, straight)[:, past:], rtol=0, atol=TOLERANCE)


def test_rows_trim_to_different_lengths(model: Decoder) -> None:
    row, other = toys.tokens(2, 20), toys.tokens(2, 5, seed=9)
    _, state = run(model, row, model.init_state(2, 32), [])
    kept = trim(state, [20, 3])
    tail, _ = run(model, other, state, [])
    for index, past in enumerate(kept):
        straight = torch.cat([row[index : index + 1, :past], other[index : index + 1]], dim=1)
        expected = logits_of(model, straight)[0, past:]
        torch.testing.assert_close(tail[index], expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("lengths", [[21, 20], [20], [20, -1]])
def test_a_state_refuses_to_trim_to_what_it_has_not(lengths: list[int]) -> None:
    model = toys.toy("llama")
    _, state = run(model, toys.tokens(2, 20), model.init_state(2, 32), [])
    with pytest.raises(ShapeError):
        state.trim(lengths)
    assert state.lengths == [20, 20]


@pytest.mark.parametrize("kept", [(20, 20), (20, 15), (15, 20)])
def test_forks_never_see_each_other(model: Decoder, kept: tuple[int, int]) -> None:
    """Whatever is done to a fork, the original goes on as if it had none, and the other way round."""
    row, left, right = toys.tokens(1, 20), toys.tokens(1, 9, seed=1), toys.tokens(1, 9, seed=2)
    for writer_first in (True, False):
        _, state = run(model, row, model.init_state(1, 64), [])
        fork = state.fork()
        (here,), (there,) = trim(state, [kept[0]]), trim(fork, [kept[1]])
        order = [(state, left, here), (fork, right, there)]
        written = []
        for which, tail, past in order if writer_first else reversed(order):
            got, after = run(model, tail[:, :4], which, [1])
            straight = torch.cat([row[:, :past], tail], dim=1)
            expected = logits_of(model, straight)[:, past:]
            torch.testing.assert_close(got, expected[:, :4], rtol=0, atol=TOLERANCE)
            written.append((after, tail, past))
        for which, tail, past in written:  # and on, after both have written
            got, _ = run(model, tail[:, 4:], which, [])
            straight = torch.cat([row[:, :past], tail], dim=1)
            torch.testing.assert_close(got, logits_of(model, straight)[:, past + 4 :], rtol=0, atol=TOLERANCE)


def test_select_and_join_keep_rows_whole(model: Decoder) -> None:
    rows, tail = toys.tokens(3, 12), toys.tokens(4, 3, seed=5)
    _, state = run(model, rows, model.init_state(3, 16), [])
    chosen = state.select([2, 0, 2]).join([run(model, rows[1:2, :7], model.init_state(1, 1), [])[1]])
    assert chosen.lengths == [12, 12, 12, 7]
    got, _ = run(model, tail, chosen, [])
    pasts = [rows[2], rows[0], rows[2], rows[1, :7]]
    for index, past in enumerate(pasts):
        straight = torch.cat([past, tail[index]])[None]
        expected = logits_of(model, straight)[0, len(past) :]
        torch.testing.assert_close(got[index], expected, rtol=0, atol=TOLERANCE)


def test_nbytes_counts_the_buffers(model: Decoder) -> None:
    """Attention holds buffers for the capacity asked for, recurrent layers the same whatever the length."""
    empty = model.init_state(2, 16)
    _, state = run(model, toys.tokens(2, 5), empty, [])
    _, longer = run(model, toys.tokens(2, 15), model.init_state(2, 16), [])
    assert state.nbytes == longer.nbytes > 0
    mixers = [layer.mixer for layer in model.layers]
    if all(type(mixer) is Attention for mixer in mixers):
        per_token = sum(2 * mixer.num_kv_heads * mixer.head_dim * 4 for mixer in mixers)
        assert state.nbytes == 2 * 16 * per_token
    assert state.select([0]).nbytes * 2 == state.nbytes


def test_a_state_of_other_rows_is_refused(model: Decoder) -> None:
    with pytest.raises(ShapeError):
        model.hidden(toys.tokens(3, 4), model.init_state(1, 8))


def test_bad_tokens_are_refused(model: Decoder) -> None:
    for bad in (
        torch.zeros(1, 0, dtype=torch.int64),
        torch.zeros(4, dtype=torch.int64),
        torch.tensor([[toys.VOCAB]]),
        torch.tensor([[-1]]),
        torch.zeros(1, toys.CONTEXT + 1, dtype=torch.int64),
    ):
        with pytest.raises(RequestError):
            model(bad)
    state = run(model, toys.tokens(1, toys.CONTEXT), model.init_state(1, 1), [30])[1]
    with pytest.raises(RequestError):
        model.hidden(torch.tensor([[1]]), state)


# --- building, assembling, compiling


@every_toy
def test_initialise_fills_everything_and_repeats(name: str) -> None:
    spec = toys.specs()[name]
    first, second, third = (spec.build() for _ in range(3))
    for module in (first, second, third):
        for leaf in toys.leaves(module).values():
            torch.nn.init.constant_(leaf.dense_weight(), float("nan"))
    torch.manual_seed(1)
    initialise(first, seed=5)
    torch.manual_seed(2)
    drawn = torch.random.get_rng_state()
    initialise(second, seed=5)
    assert torch.equal(torch.random.get_rng_state(), drawn)
    initialise(third, seed=6)
    one, two, three = (toys.tensors_of(module) for module in (first, second, third))
    for key, tensor in one.items():
        assert torch.isfinite(tensor).all(), key
        assert torch.equal(tensor, two[key]), key
    assert any(not torch.equal(tensor, three[key]) for key, tensor in one.items())
    for path, leaf in toys.leaves(first).items():
        if leaf.initialiser == Normal() and leaf.shape.numel() > 500:
            assert 0.015 < float(leaf.dense_weight().detach().std()) < 0.025, path
        assert leaf.bias is None or not leaf.bias.any(), path


@every_toy
def test_assembled_model_is_the_same_and_holds_the_given_memory(name: str, models: dict[str, Decoder]) -> None:
    tensors = toys.tensors_of(models[name])
    made = assemble(toys.specs()[name], Plan(), tensors)
    assert isinstance(made, Decoder)
    assert not made.training
    row = toys.tokens(2, TIME)
    assert torch.equal(logits_of(made, row), logits_of(models[name], row))
    for key, parameter in made.named_parameters():
        assert parameter.data_ptr() == tensors[key].data_ptr()
        assert not parameter.is_meta
    assert not any(buffer.is_meta for buffer in made.buffers())


@every_toy
def test_wrong_tensors_are_refused_by_name(name: str, models: dict[str, Decoder]) -> None:
    spec, tensors = toys.specs()[name], toys.tensors_of(models[name])
    last = sorted(tensors)[-1]
    with pytest.raises(FileFormatError, match=last):
        assemble(spec, Plan(), {key: value for key, value in tensors.items() if key != last})
    with pytest.raises(FileFormatError, match=r"extra\.weight"):
        assemble(spec, Plan(), tensors | {"extra.weight": torch.zeros(2)})
    with pytest.raises(ShapeError, match=last):
        assemble(spec, Plan(), tensors | {last: torch.zeros(3, 5)})
    with pytest.raises(ShapeError, match=last):
        assemble(spec, Plan(), tensors | {last: tensors[last].to(torch.uint8)})


@every_toy
def test_a_copy_is_independent(name: str) -> None:
    model = toys.toy(name)
    row = toys.tokens(1, 8)
    before = logits_of(model, row)
    other = copy.deepcopy(model)
    toys.stir(other.parameters())
    assert torch.equal(logits_of(model, row), before)
    assert not torch.equal(logits_of(other, row), before)


@every_toy
def test_every_sublayer_is_a_site(name: str, models: dict[str, Decoder]) -> None:
    """Techniques act on sites, so a family made of modules that are none could not be worked on."""
    for layer in models[name].layers:
        assert isinstance(layer, Site)
        owners = {path.partition(".")[0] for path, module in layer.named_modules() if isinstance(module, Leaf)}
        assert owners
        for owner in owners:
            assert isinstance(layer.get_submodule(owner), Site)


@every_toy
def test_techniques_reach_the_matrices(name: str, models: dict[str, Decoder]) -> None:
    """At least 99 % of the numbers that stand in matrices belong to leaves, where a weight can be stored otherwise; all of
    the linear maps' and experts' can be adapted."""
    reached = total = 0
    for module in models[name].modules():
        for item in module.parameters(recurse=False):
            if item.dim() >= 2:
                total += item.numel()
                reached += item.numel() if isinstance(module, Leaf) else 0
    assert reached >= 0.99 * total
    maps = {path for path, leaf in toys.leaves(models[name]).items() if isinstance(leaf, LinearMap)}
    assert maps == set(linear_maps(models[name], "**"))


@pytest.mark.parametrize("name", sorted(toys.varied()))
def test_forward_compiles_as_one_graph(name: str, models: dict[str, Decoder]) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(models[name], backend="aot_eager", fullgraph=True)
    row = toys.tokens(2, TIME)
    torch.testing.assert_close(logits_of(compiled, row), logits_of(models[name], row), rtol=0, atol=TOLERANCE)
    tokens, context = packed([[1, 2, 3], [4, 5, 6, 7]])
    with torch.no_grad():
        got = compiled(tokens, Context(positions=context.positions, segments=context.segments))
    torch.testing.assert_close(got, logits_of(models[name], tokens, context), rtol=0, atol=TOLERANCE)


@pytest.mark.filterwarnings(r"ignore:`torch\.jit\.script_method` is deprecated:DeprecationWarning")
def test_forward_compiles_with_inductor() -> None:
    """The backend that is used in earnest, once: a layer that sees all and a layer with a window."""
    torch._dynamo.reset()
    model = toys.model_of(toys.toy_of(family_for("qwen2"), num_hidden_layers=2))
    compiled = torch.compile(model, fullgraph=True)
    row = toys.tokens(2, TIME)
    torch.testing.assert_close(logits_of(compiled, row), logits_of(model, row), rtol=0, atol=TOLERANCE)
