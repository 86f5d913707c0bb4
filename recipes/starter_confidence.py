"""Fits the weights by which an assistant decides to decline, and writes them into the starter's manifest.

    python recipes/starter_confidence.py --data ../shared/data --starter src/almanac/assistant/starter_adapter

Questions that the starter never saw: people's held-out ones (``starter_data.split``), the public's medical ones, and ones
made by rule from books. Each is asked twice, once of an index that holds its text and once as if the text had been taken out.
All of it happens in the two states in which the weights are used: with the starter as it comes, and after a run on documents
as a build makes it. That run moves the model's own signals, so weights fitted on the starter alone would decline too much.
Logistic regression (Platt 1999) on standardised signals with an L2 penalty, every kind of question weighing the same; the
threshold is where the two kinds of error stand to each other as the aims of the main job do, on people's questions and on
rule-made ones alike. Five-fold cross-validation says what to expect.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import random
import tempfile
from collections.abc import Iterator
from dataclasses import astuple, dataclass
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

PER_KIND = 60  # of the medical ones and of those made by rule; of the people's, all that were held out
PEOPLE = "people"
PENALTY = 0.05
STATES = ("starter", "trained")
COLUMNS = ("rows", "labels", "numbers", "kinds")
AIMS = (0.10, 0.20)  # shares of answerable questions declined and of others answered that the main job allows
JUDGED = (PEOPLE, "made")  # the kinds that set the threshold: of the others, texts that were left in often answer too


def questions(data: Path, tokenizer: Tokenizer, settings: BuildSettings) -> list[tuple[str, starter_data.Asked]]:
    """(kind, question with an answer and the text that holds it): by people, by the public, and made by rule."""
    with gzip.open(data / "retrieval" / "xquad" / "en.jsonl.gz", "rt", encoding="utf-8") as lines:
        tests = [json.loads(line)["context"] for line in lines]
    people = starter_data.people(data, tests)
    _, held_out = starter_data.split(people, held_out=starter_adapter.HELD_OUT, seed=starter_adapter.SEED)
    _, reports = starter_data.split(
        starter_data.finance(data), held_out=starter_adapter.FINANCE_HELD_OUT, seed=starter_adapter.SEED
    )
    rng = random.Random("confidence")
    kinds = {
        PEOPLE: held_out,
        "finance": reports,
        "medical": rng.sample(list(_medical(data, tokenizer)), k=PER_KIND),
        "made": rng.sample(list(_made(data, tokenizer, settings)), k=PER_KIND),
    }
    return [(kind, item) for kind, items in kinds.items() for item in items]


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


@dataclass(frozen=True)
class Seen:
    """What was observed: signals [n, 6], whether the shown passages hold the answer, the question's number and its kind."""

    rows: np.ndarray
    labels: np.ndarray
    numbers: np.ndarray
    kinds: np.ndarray

    def part(self, chosen: np.ndarray) -> Seen:
        return Seen(self.rows[chosen], self.labels[chosen], self.numbers[chosen], self.kinds[chosen])


def fit(seen: Seen) -> Confidence:
    """Logistic regression, and the threshold."""
    mean, spread = seen.rows.mean(0), seen.rows.std(0) + 1e-6
    x = torch.tensor((seen.rows - mean) / spread)
    y = torch.tensor(seen.labels, dtype=torch.float64)
    weights = np.zeros(len(seen.rows))
    for kind in set(seen.kinds.tolist()):
        for label in (True, False):
            cell = (seen.kinds == kind) & (seen.labels == label)
            weights[cell] = 1 / max(1, cell.sum())
    balance = torch.tensor(weights / weights.mean())
    parameters = torch.zeros(x.shape[1] + 1, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([parameters], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> float:
        optimizer.zero_grad()
        logits = x @ parameters[:-1] + parameters[-1]
        loss = (torch.nn.functional.binary_cross_entropy_with_logits(logits, y, reduction="none") * balance).mean()
        loss = loss + PENALTY * parameters[:-1].square().mean()
        loss.backward()
        return float(loss.detach())

    optimizer.step(closure)
    slopes = parameters[:-1].detach().numpy() / spread
    bias = float(parameters[-1].detach()) - float(slopes @ mean)
    found = Confidence(weights=tuple(float(w) for w in slopes), bias=bias)
    return found.with_(threshold=_threshold(sure(found, seen.rows), seen))


def _threshold(score: np.ndarray, seen: Seen) -> float:
    """Where the larger of the two errors, each as a multiple of its aim and averaged over `JUDGED`, is least."""
    places = np.quantile(score, np.linspace(0.01, 0.99, 197))
    cells = [(score[seen.kinds == kind], seen.labels[seen.kinds == kind]) for kind in JUDGED]

    def worse(place: float) -> float:
        declined = np.mean([(part[labels] < place).mean() for part, labels in cells])
        answered = np.mean([(part[~labels] >= place).mean() for part, labels in cells])
        return max(float(declined) / AIMS[0], float(answered) / AIMS[1])

    return float(min(places, key=worse))


def sure(confidence: Confidence, rows: np.ndarray) -> np.ndarray:
    """The probabilities that the formula gives, [n]."""
    return 1 / (1 + np.exp(-(rows @ np.array(confidence.weights) + confidence.bias)))


def expected(seen: Seen, states: np.ndarray) -> dict[str, Any]:
    """Five-fold figures by state and kind: shares declined of answerable and other questions; area under the curve."""
    score, declined = np.zeros(len(seen.rows)), np.zeros(len(seen.rows), bool)
    for fold in range(5):
        part = seen.numbers % 5 == fold
        found = fit(seen.part(~part))
        score[part] = sure(found, seen.rows[part])
        declined[part] = score[part] < found.threshold
    figures: dict[str, Any] = {"area": _area(score[seen.labels], score[~seen.labels])}
    for state in STATES:
        for kind in dict.fromkeys(seen.kinds.tolist()):
            cell = (states == state) & (seen.kinds == kind)
            figures[f"{state}, {kind}"] = {
                "answerable_declined": float(declined[cell & seen.labels].mean()),
                "unanswerable_declined": float(declined[cell & ~seen.labels].mean()),
                "asked": int(cell.sum()),
            }
    return figures


def _area(positives: np.ndarray, negatives: np.ndarray) -> float:
    """The probability that an answerable question scores above another one."""
    return float((positives[:, None] > negatives[None]).mean())


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


def collect(
    lm: LanguageModel, asked: list[tuple[str, starter_data.Asked]], settings: BuildSettings, path: Path
) -> None:
    """Signals in both states, written to ``path`` as each is done; what is there is not asked again."""
    stored: Any = read_json(path) if path.is_file() else {"of": list(NAMES)}
    texts = {item.context: _document(item.context) for _, item in asked}
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
                mine = [number for number, (_, item) in enumerate(asked) if item.context not in left]
            else:
                mine = list(range(len(asked)))
            items = [asked[number][1] for number in mine]
            rows, labels, places = signals(Assistant(lm, index, settings, encoder, always), items)
            numbers = np.array(mine)[places]  # of the question, the same in both states, so that a fold holds out both
            kinds = [asked[number][0] for number in numbers]
            stored[state] = {
                "rows": rows.tolist(), "labels": labels.tolist(), "numbers": numbers.tolist(), "kinds": kinds
            }  # fmt: skip
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
    columns = [np.concatenate([np.array(stored[state][name]) for state in STATES]) for name in COLUMNS]
    states = np.concatenate([[state] * len(stored[state]["rows"]) for state in STATES])
    seen = Seen(*columns)
    confidence = fit(seen)
    figures = expected(seen, states)
    print(f"\n{len(seen.rows)} asked, {int(seen.labels.sum())} answerable", json.dumps(figures, indent=1))
    print(dict(zip(NAMES, confidence.weights, strict=True)), confidence.bias, confidence.threshold)
    manifest = read_json(chosen.starter / starter.MANIFEST)
    assert isinstance(manifest, dict)
    write_json(
        chosen.starter / starter.MANIFEST,
        manifest | {"confidence": confidence.to_dict(), "confidence_expected": figures},
    )


if __name__ == "__main__":
    main()
