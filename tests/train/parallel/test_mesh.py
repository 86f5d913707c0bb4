"""The value that says how processes share the work, and the parts that tensors are cut into."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from almanac.core.batch import Tokens
from almanac.core.errors import FileFormatError, UnsupportedError
from almanac.core.value import Value
from almanac.data.windows import Share
from almanac.train.parallel import mesh as mesh_file
from almanac.train.parallel.context import part_of
from almanac.train.parallel.fsdp import part
from almanac.train.parallel.mesh import REFUSED, Mesh
from almanac.train.parallel.rows import rows_of
from almanac.train.parallel.rules import Cut
from almanac.train.parallel.together import Together
from almanac.train.pieces import OneWriter, tensors_from


def test_it_prints_and_comes_back() -> None:
    mesh = Mesh(data=2, tensor=4)
    assert mesh.world == 8
    assert Value.from_dict(mesh.to_dict()) == mesh


def test_every_refused_pair_stands_in_the_table_with_its_reason() -> None:
    table = {
        tuple(line.split("|")[1].strip().split(" + ")): line
        for line in str(mesh_file.__doc__).splitlines()
        if " + " in line
    }
    assert table.keys() == REFUSED.keys()
    for pair, reason in REFUSED.items():
        assert reason.split(";")[0] in table[pair]
        with pytest.raises(UnsupportedError, match="Leave"):
            Mesh(**dict.fromkeys(pair, 2))


def test_nonsense_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="one rank at least"):
        Mesh(data=0)
    with pytest.raises(UnsupportedError, match="1f1b"):
        Mesh(schedule="zigzag")


def test_too_few_processes_are_refused_with_the_command_to_type() -> None:
    with pytest.raises(UnsupportedError, match="torchrun --nproc-per-node 3"):
        Together(Mesh(data=3))


@given(length=st.integers(1, 9), width=st.integers(1, 3), ranks=st.integers(1, 6))
def test_parts_of_a_tensor_make_the_whole(length: int, width: int, ranks: int) -> None:
    whole = torch.arange(length * width).view(length, width)
    cuts = [part(Cut.none(whole), rank, ranks) for rank in range(ranks)]
    assert torch.cat([cut.of(whole) for cut in cuts]).equal(whole)
    chunks = [*torch.chunk(whole, ranks), *[whole[:0]] * ranks]
    assert all(cut.of(whole).equal(chunk) for cut, chunk in zip(cuts, chunks, strict=False))


def test_parts_that_do_not_make_the_whole_are_refused(tmp_path: object) -> None:
    from pathlib import Path

    from almanac.files.safetensors import write_safetensors
    from almanac.files.store import write_json

    folder = Path(str(tmp_path))
    write_safetensors(folder / "one.safetensors", {"a": torch.ones(2, 3)})
    write_json(folder / "slices.json", {"one.safetensors": {"a": {"whole": [4, 3], "start": [0, 0]}}})
    with pytest.raises(FileFormatError, match="do not make the whole"):
        tensors_from(folder, OneWriter())


def batch(rows: int, time: int) -> Tokens:
    tokens = torch.arange(rows * time).view(rows, time)
    mask = torch.rand(rows, time, generator=torch.Generator().manual_seed(rows)) < 0.5
    mask[:, 0] = False
    return Tokens(tokens, mask, torch.arange(time).repeat(rows, 1), torch.zeros_like(tokens))


@given(rows=st.integers(1, 7), ranks=st.integers(1, 5))
def test_every_row_is_somebodys_and_nobodys_twice(rows: int, ranks: int) -> None:
    whole = batch(rows, 6)
    shares = [rows_of(whole, Share(rank, ranks)) for rank in range(ranks)]
    assert sorted(int(t) for s in shares for t in s.tokens[s.loss_mask]) == whole.tokens[whole.loss_mask].tolist()
    assert all(len(share.tokens) for share in shares)


@given(time=st.integers(2, 17), ranks=st.integers(2, 4))
def test_every_target_is_predicted_once_from_the_token_before_it(time: int, ranks: int) -> None:
    whole = batch(2, time)
    seen: list[tuple[int, int]] = []
    for rank in range(ranks):
        mine = part_of(whole, rank, ranks, packed=False)
        for row, column in product(range(2), range(mine.tokens.shape[1])):
            if mine.loss_mask[row, column]:
                assert mine.inner[column - 1]
                seen.append((int(mine.tokens[row, column - 1]), int(mine.tokens[row, column])))
    wanted = [(int(whole.tokens[r, c - 1]), int(whole.tokens[r, c])) for r, c in whole.loss_mask.nonzero().tolist()]
    assert sorted(seen) == sorted(wanted)
