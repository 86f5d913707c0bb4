"""Perplexity under a model of ours: the mean loss of its first tokens, and the step that judges by it."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from docs.toy_model import language_model

from almanac.curate.model_perplexity import ModelPerplexity, perplexity
from almanac.data.filters.step import Removed
from almanac.data.sources.document import Document

TEXT = "The lamp of the house is old and the river by it is quiet."


def test_it_is_the_mean_loss_of_the_first_tokens() -> None:
    lm = language_model()
    lm.network.eval()
    begin = [] if lm.tokenizer.special.bos is None else [lm.tokenizer.special.bos]
    row = [*begin, *lm.tokenizer.encode(TEXT, add_special_tokens=False, allow_special=False)][:9]
    total = 0.0
    with torch.inference_mode():
        for place in range(1, 9):
            total -= float(lm.network(torch.tensor([row[:place]]))[0, -1].float().log_softmax(0)[row[place]])
    assert perplexity(lm, TEXT, tokens=9) == pytest.approx(math.exp(total / 8), rel=1e-3)
    assert perplexity(lm, "", tokens=9) == math.inf


def test_documents_outside_the_bounds_go(tmp_path: Path) -> None:
    lm = language_model()
    folder = lm.save(tmp_path / "toy")
    value = perplexity(lm, TEXT, tokens=64)
    kinds = {}
    for name, low, high in (("in", 0.0, value * 1.1), ("above", 0.0, value * 0.9), ("below", value * 1.1, value * 2)):
        step = ModelPerplexity(model=str(folder), max_perplexity=high, min_perplexity=low, tokens=64)
        outcome = step.prepare(tmp_path)(Document("x", TEXT))
        kinds[name] = outcome.reason if isinstance(outcome, Removed) else "kept"
        assert step.files() == (str(folder),)
    assert kinds == {"in": "kept", "above": "too improbable to the model", "below": "too probable to the model"}
    assert ModelPerplexity(model="an-alias", max_perplexity=1.0).files() == ()
