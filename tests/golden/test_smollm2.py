"""The embedded model answers 32 prompts as transformers does (R14): alone, in any company, packed and expanded."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from almanac.core.errors import NotFoundError
from almanac.files.hub import alias_path
from almanac.files.store import sha256_file
from almanac.generate.engine import Request, run_all
from almanac.language_model.load import load
from almanac.language_model.model import LanguageModel
from almanac.nn.stored import kernels

GOLDEN = json.loads(Path(__file__).with_name("smollm2.json").read_text(encoding="utf-8"))
ROWS: list[dict[str, Any]] = GOLDEN["rows"]
NEW_TOKENS = 16
COMPANIES = (1, 5, 12, 32)  # rows decoded together
CACHE_BOUND = 1e-5

pytestmark = pytest.mark.embedded


@pytest.fixture(scope="module")
def path() -> Path:
    try:
        return alias_path(GOLDEN["model"], download=False)
    except NotFoundError:
        pytest.skip(f"{GOLDEN['model']} is not in the cache (`almanac doctor --fetch {GOLDEN['model']}`)")


@pytest.fixture(scope="module", autouse=True)
def all_threads() -> Iterator[None]:
    """This model is large enough to gain from threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def packed(path: Path) -> LanguageModel:
    return load(path)


def request(lm: LanguageModel, row: dict[str, Any]) -> Request:
    return replace(lm.request(row["ids"], max_tokens=NEW_TOKENS), stop_tokens=frozenset())


def test_the_golden_file_is_of_this_model(path: Path, packed: LanguageModel) -> None:
    assert sha256_file(path) == GOLDEN["sha256"]
    assert len(ROWS) == 32
    for row in ROWS:
        assert row["margin"] >= GOLDEN["least_margin"] > 0
        assert len(row["golden"]) == NEW_TOKENS
        said = [{"role": "user", "content": row["text"]}]
        ids = packed.chat_tokens(said) if row["kind"] == "chat" else packed.tokenizer.encode(row["text"])
        assert ids == row["ids"]


@pytest.mark.parametrize("max_rows", COMPANIES)
def test_packed_kernels_give_one_answer_in_any_company(max_rows: int, packed: LanguageModel) -> None:
    if not kernels.available():
        pytest.skip("no C compiler here, so the packed products are torch's")
    order = list(range(len(ROWS)))
    random.Random(max_rows).shuffle(order)
    engine = packed.engine(max_rows=max_rows, prefill_chunk=(7, 512)[max_rows % 2])
    found = run_all(engine, [request(packed, ROWS[index]) for index in order])
    for index, tokens in zip(order, found, strict=True):
        assert tokens == ROWS[index]["golden"], ROWS[index]["text"]


def test_expanded_weights_give_the_same_answers_without_the_kernels(path: Path) -> None:
    dense = load(path, packed=False)
    with kernels.disabled():
        found = run_all(dense.engine(max_rows=len(ROWS)), [request(dense, row) for row in ROWS])
    assert found == [row["golden"] for row in ROWS]


def test_cached_logits_are_those_of_the_whole_row(packed: LanguageModel) -> None:
    """Fed in chunks and token by token, against one pass; both below the length from which weights are expanded."""
    largest = 0.0
    with torch.inference_mode():
        for row in ROWS[:6]:
            tokens = torch.tensor([[*row["ids"], *row["golden"]]])[:, :40]
            whole = packed.network(tokens)[0]
            state = packed.network.init_state(1, tokens.shape[1])
            pieces = []
            for piece in tokens.split([3, 2, *[1] * (tokens.shape[1] - 5)], dim=1):
                hidden, state = packed.network.hidden(piece, state)
                pieces.append(packed.network.logits(hidden)[0])
            cached = torch.cat(pieces)
            largest = max(largest, float((cached - whole).abs().max() / whole.abs().max()))
            assert cached.argmax(-1).equal(whole.argmax(-1))
    assert largest <= CACHE_BOUND
