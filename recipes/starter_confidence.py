"""Fits the weights by which an assistant decides to decline, and writes them into the starter's manifest.

    python recipes/starter_confidence.py --data ../shared/data --starter src/almanac/assistant/starter_adapter

Questions that the starter never saw: people's held-out ones (``starter_data.split``), the public's medical ones, and ones
made by rule from books. Each is asked twice, once of an index that holds its text and once as if the text had been taken out.
All of it happens in the two states in which the weights are used: with the starter as it comes, and after a run on documents
as a build makes it. That run moves the model's own signals, so weights fitted on the starter alone would decline too much.
Logistic regression (Platt 1999) on standardised signals with an L2 penalty; five-fold cross-validation says what to expect.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import random
import tempfile
from collections.abc import Iterator
from dataclasses import astuple
from pathlib import Path
from typing import Any

import numpy as np
import starter_adapter
import starter_data
import torch

import almanac
from almanac.align.supervised import Example, finetune
from almanac.assistant import starter
from almanac.assistant.ask import Assistant
from almanac.assistant.confidence import NAMES, Confidence, draft_of
from almanac.assistant.documents import chunked
from almanac.assistant.extraction import with_article
from almanac.assistant.grounding import ground
from almanac.assistant.prompt import messages
from almanac.assistant.settings import BuildSettings
from almanac.data.grounded import make_grounded
from almanac.files.store import write_json
from almanac.files.strict_json import read_json
from almanac.language_model.encoder import load_encoder
from almanac.language_model.model import LanguageModel
from almanac.retrieve.index.store import DocumentIndex
from almanac.retrieve.lexical import LexicalIndex
from almanac.retrieve.read.document import Document, Section
from almanac.tokenizers.tokenizer import Tokenizer
from almanac.train.settings import TrainSettings

PER_KIND = 80
PENALTY = 0.05
STATES = ("starter", "trained")
DECLINED_ANSWERABLE = 0.08  # share of answerable questions that may be lost: what sets the threshold


def questions(data: Path, tokenizer: Tokenizer, settings: BuildSettings) -> list[starter_data.Asked]:
    """Questions with an answer and the text that holds it: by people, by the public, and made by rule."""
    with gzip.open(data / "retrieval" / "xquad" / "en.jsonl.gz", "rt", encoding="utf-8") as lines:
        tests = [json.loads(line)["context"] for line in lines]
    people = starter_data.people(data, tests)
    _, held_out = starter_data.split(people, held_out=starter_adapter.HELD_OUT, seed=starter_adapter.SEED)
    _, reports = starter_data.split(
        starter_data.finance(data), held_out=starter_adapter.FINANCE_HELD_OUT, seed=starter_adapter.SEED
    )
    rng = random.Random("confidence")
    found = rng.sample(held_out, k=min(PER_KIND // 2, len(held_out))) + reports
    found += rng.sample(list(_medical(data, tokenizer)), k=PER_KIND)
    made = list(_made(data, tokenizer, settings))
    return found + rng.sample(made, k=min(PER_KIND, len(made)))


def _medical(data: Path, tokenizer: Tokenizer) -> Iterator[starter_data.Asked]:
    """The public's questions that the recipe of the adapter did not draw; answered by the first sentence."""

    def count(text: str) -> int:
        return len(tokenizer.encode(text, add_special_tokens=False, allow_special=False))

    drawn = starter_data.medical(
        data,
        count=count,
        limit=starter_adapter.MEDICAL,
        unanswerable=starter_adapter.UNANSWERABLE,
        seed=starter_adapter.SEED,
    )
    seen = {example.question for example in drawn}
    for row in starter_data.read_rows(data / "domain" / "medquad_qa.jsonl.gz"):
        text = " ".join(row["answer"].split())
        if row["question"].strip() not in seen and 300 < len(text) < 2500:
            yield starter_data.Asked(row["question"].strip(), text[:80], text)


def _made(data: Path, tokenizer: Tokenizer, settings: BuildSettings) -> Iterator[starter_data.Asked]:
    """Questions made by rule from books that the recipe of the adapter does not read."""
    names = {path.name.split(".")[0] for path in (data / "text" / "books").glob("*.txt.gz")}
    for row in starter_data.read_rows(data / "text" / "books_corpus.jsonl.gz"):
        if row["title"] in names:
            continue
        text = row["text"][len(row["text"]) // 3 :][:24_000]
        document = _document(text, row["title"])
        passages = [chunk.as_passage() for _, chunks in chunked([document], tokenizer, settings) for chunk in chunks]
        for example in make_grounded(passages, seed=7, per_passage=2, unanswerable=0.0, shown=1):
            yield starter_data.Asked(example.question, example.answer.rpartition(" [")[0], text)


def _document(text: str, title: str = "") -> Document:
    name = f"text-{hashlib.sha256(text.encode()).hexdigest()[:12]}.txt"
    digest = hashlib.sha256(text.encode()).hexdigest()
    return Document(name, title or name, (Section((), 0, text, 0, len(text)),), digest)


def signals(assistant: Assistant, asked: list[starter_data.Asked]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What is known of every question, asked with and without its text: signals, labels and numbers of the questions."""
    rows: list[tuple[float, ...]] = []
    labels, numbers, waiting = [], [], []
    engine = assistant.lm.engine()
    for number, item in enumerate(asked):
        gold = _document(item.context).path
        found = [hit.chunk for hit in assistant.index.search(item.question, 40)]
        present = tuple(chunk.as_passage() for chunk in found[: assistant.settings.shown])
        held = any(p.document == gold and item.answer in p.text for p in present)
        others = [chunk for chunk in found if chunk.document != gold and item.answer not in chunk.text]
        absent = tuple(chunk.as_passage() for chunk in others[: assistant.settings.shown])
        for passages, label in ((present, held), (absent, False)):
            if passages:
                handle = engine.submit(assistant.request(item.question, passages))
                waiting.append((item.question, passages, handle))
                labels.append(label)
                numbers.append(number)
    while engine.step():
        done = sum(handle.finish is not None for _, _, handle in waiting)
        print(f"\r{done}/{len(waiting)}", end="", flush=True)
    for question, passages, handle in waiting:
        draft = draft_of(handle.events, assistant.lm.tokenizer)
        grounded = ground(with_article(draft.text, passages), question, passages, relevant=0.0)
        rows.append(astuple(assistant.signals(question, passages, draft, grounded)))
    return np.array(rows), np.array(labels), np.array(numbers)


def fit(rows: np.ndarray, labels: np.ndarray) -> Confidence:
    """Logistic regression; the threshold loses `DECLINED_ANSWERABLE` of the answerable questions."""
    mean, spread = rows.mean(0), rows.std(0) + 1e-6
    x = torch.tensor((rows - mean) / spread)
    y = torch.tensor(labels, dtype=torch.float64)
    balance = torch.where(y > 0, 0.5 / y.mean(), 0.5 / (1 - y.mean()))
    parameters = torch.zeros(x.shape[1] + 1, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([parameters], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        logits = x @ parameters[:-1] + parameters[-1]
        loss = (torch.nn.functional.binary_cross_entropy_with_logits(logits, y, reduction="none") * balance).mean()
        loss = loss + PENALTY * parameters[:-1].square().mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    weights = parameters[:-1].detach().numpy() / spread
    bias = float(parameters[-1].detach()) - float(weights @ mean)
    found = Confidence(weights=tuple(float(w) for w in weights), bias=bias)
    sure = 1 / (1 + np.exp(-(rows @ weights + bias)))
    return found.with_(threshold=float(np.quantile(sure[labels], DECLINED_ANSWERABLE)))


def expected(rows: np.ndarray, labels: np.ndarray, numbers: np.ndarray) -> dict[str, float]:
    """Five-fold figures: area under the curve, and the shares declined of answerable and other questions."""
    folds = numbers % 5
    sure, declined = np.zeros(len(rows)), np.zeros(len(rows), bool)
    for fold in range(5):
        part = folds == fold
        found = fit(rows[~part], labels[~part])
        sure[part] = 1 / (1 + np.exp(-(rows[part] @ np.array(found.weights) + found.bias)))
        declined[part] = sure[part] < found.threshold
    order = np.argsort(np.argsort(sure))
    positives = labels.sum()
    area = (order[labels].sum() - positives * (positives - 1) / 2) / (positives * (len(labels) - positives))
    return {
        "area": float(area),
        "answerable_declined": float(declined[labels].mean()),
        "unanswerable_declined": float(declined[~labels].mean()),
    }


def train(lm: LanguageModel, texts: list[Document], settings: BuildSettings) -> None:
    """What a build does with its training documents."""
    passages = [chunk.as_passage() for _, chunks in chunked(texts, lm.tokenizer, settings) for chunk in chunks]
    near = LexicalIndex.build([chunk for _, chunks in chunked(texts, lm.tokenizer, settings) for chunk in chunks])
    examples = make_grounded(
        passages,
        seed=settings.seed,
        per_passage=settings.per_passage,
        unanswerable=settings.declining,
        shown=settings.shown,
        distractors=lambda question, count: [hit.chunk.as_passage() for hit in near.search(question, count)],
    )
    dialogues: list[Example] = [
        [*messages(example.question, example.passages), {"role": "assistant", "content": example.answer}]
        for example in examples
    ]
    chosen = TrainSettings(
        learning_rate=settings.learning_rate,
        steps=settings.steps,
        step_tokens=settings.step_tokens,
        micro_tokens=settings.micro_tokens,
        seed=settings.seed,
    )
    finetune(lm, dialogues, plan=(), settings=chosen)


def collect(lm: LanguageModel, asked: list[starter_data.Asked], settings: BuildSettings, path: Path) -> None:
    """Signals in both states, written to ``path`` as each is done; what is there is not asked again."""
    stored: Any = read_json(path) if path.is_file() else {"of": list(NAMES)}
    texts = {item.context: _document(item.context) for item in asked}
    encoder = load_encoder(settings.encoder)
    always = Confidence(weights=(0.0,) * len(NAMES), bias=0.0, threshold=0.0)  # so that it always answers
    with tempfile.TemporaryDirectory() as folder:
        index = DocumentIndex.create(folder, embedder=encoder)
        index.add(chunked(list(texts.values()), lm.tokenizer, settings))
        for state in STATES:
            if state in stored:
                continue
            if state == "trained":  # on every third text, whose questions are then not asked
                train(lm, list(texts.values())[::3], settings)
                left = set(list(texts)[::3])
                mine = [item for item in asked if item.context not in left]
            else:
                mine = asked
            rows, labels, numbers = signals(Assistant(lm, index, settings, encoder, always), mine)
            stored[state] = {"rows": rows.tolist(), "labels": labels.tolist(), "numbers": numbers.tolist()}
            write_json(path, stored)


def main() -> None:
    """Asks, fits, and writes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--starter", type=Path, required=True)
    parser.add_argument("--signals", type=Path, default=Path("starter-signals.json"))
    chosen = parser.parse_args()
    settings = BuildSettings()
    lm = almanac.load(starter_adapter.BASE)
    found = starter.find(lm, chosen.starter)
    assert found is not None, "there is no starter for this base in that folder"
    found.attach(lm)
    collect(lm, questions(chosen.data, lm.tokenizer, settings), settings, chosen.signals)
    stored: Any = read_json(chosen.signals)
    parts = [[np.array(stored[state][name]) for name in ("rows", "labels", "numbers")] for state in STATES]
    rows, labels, numbers = (np.concatenate([part[column] for part in parts]) for column in range(3))
    confidence = fit(rows, labels)
    figures: dict[str, Any] = expected(rows, labels, numbers)
    sure = 1 / (1 + np.exp(-(rows @ np.array(confidence.weights) + confidence.bias)))
    state_of = np.repeat(np.arange(len(parts)), [len(part[0]) for part in parts])
    for number, state in enumerate(STATES):
        mine = state_of == number
        figures[state] = {
            "answerable_declined": float((sure[mine & labels] < confidence.threshold).mean()),
            "unanswerable_declined": float((sure[mine & ~labels] < confidence.threshold).mean()),
        }
    print(f"\n{len(rows)} asked, {int(labels.sum())} answerable", figures)
    print(dict(zip(NAMES, confidence.weights, strict=True)), confidence.bias, confidence.threshold)
    manifest = read_json(chosen.starter / starter.MANIFEST)
    assert isinstance(manifest, dict)
    write_json(
        chosen.starter / starter.MANIFEST,
        manifest | {"confidence": confidence.to_dict(), "confidence_expected": figures},
    )


if __name__ == "__main__":
    main()
