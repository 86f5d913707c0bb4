"""The starter adapter: SmolLM2-135M-Instruct learns to answer from numbered passages, to cite, and to decline.

    python recipes/starter_adapter.py --data ../shared/data --output src/almanac/assistant/starter_adapter

One LoRA of rank 16 on every linear map of the packed 4-bit base (QLoRA), answer-only loss. Two passes over different examples
(``starter_data.py``): the first, about 1,400 with every fourth unanswerable, teaches the form and leaves a model that
declines too readily; the second, about 430 with every twelfth unanswerable, teaches reading. When to
decline is then decided outside the model (``starter_confidence.py``). An hour or more on two cores; killed and started again
it goes on.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import starter_data

import almanac
from almanac.adapt.lora import Lora
from almanac.align.supervised import Example, finetune
from almanac.assistant import starter
from almanac.assistant.prompt import messages
from almanac.core.technique import Technique
from almanac.data.grounded import GroundedExample
from almanac.language_model.model import LanguageModel
from almanac.train.events.progress import Progress
from almanac.train.settings import TrainSettings

BASE = "smollm2-135m-instruct"
SEED = 0
FINANCE_HELD_OUT = 0.2
HELD_OUT = 0.25  # of the people's texts: for choosing what the recipe does, never trained on
UNANSWERABLE = 0.25
MEDICAL, MADE = 200, 800
SECOND_UNANSWERABLE, SECOND_MADE = 0.08, 180
ADAPTER = Lora(rank=16, alpha=32.0, seed=SEED)
SETTINGS = TrainSettings(
    learning_rate=1e-3, epochs=1, step_tokens=2048, micro_tokens=900, warmup=0.05, save_every=10, seed=SEED
)

SECOND_SETTINGS = SETTINGS.with_(learning_rate=6e-4)
DETAILS = {
    "name": "grounded-answering-1",
    "recipe": "recipes/starter_adapter.py",
    "settings": [SETTINGS.to_dict(), SECOND_SETTINGS.to_dict()],
    "data": {
        "AdversarialQA, through t0_multitask": "CC BY-SA 4.0",
        "Quoref, through t0_multitask": "CC BY 4.0",
        "MedQuAD": "CC BY 4.0",
        "TAT-QA, questions answered by text": "CC BY 4.0",
        "30 articles of the English Wikipedia, 2022": "CC BY-SA 3.0",
        "16 books": "public domain",
    },
    "licence": "CC BY-SA 4.0",
}


def examples(lm: LanguageModel, data: Path) -> tuple[list[GroundedExample], list[GroundedExample]]:
    """Training examples and held-out ones (people's questions only)."""

    def count(text: str) -> int:
        return len(lm.tokenizer.encode(text, add_special_tokens=False, allow_special=False))

    with gzip.open(data / "retrieval" / "xquad" / "en.jsonl.gz", "rt", encoding="utf-8") as lines:
        tests = [json.loads(line)["context"] for line in lines]
    train, held_out = starter_data.split(starter_data.people(data, tests), held_out=HELD_OUT, seed=SEED)
    chosen = list(starter_data.asked_examples(train, count=count, unanswerable=UNANSWERABLE, seed=SEED))
    chosen += starter_data.medical(data, count=count, limit=MEDICAL, unanswerable=UNANSWERABLE, seed=SEED)
    chosen += starter_data.made(data, count=count, limit=MADE, unanswerable=UNANSWERABLE, seed=SEED)
    kept = list(starter_data.asked_examples(held_out, count=count, unanswerable=UNANSWERABLE, seed=SEED))
    return random.Random(f"{SEED}/order").sample(chosen, k=len(chosen)), kept


def second_examples(lm: LanguageModel, data: Path) -> list[GroundedExample]:
    """Examples of the second pass: people's questions about company reports, and others made by rule."""

    def count(text: str) -> int:
        return len(lm.tokenizer.encode(text, add_special_tokens=False, allow_special=False))

    train, _ = starter_data.split(starter_data.finance(data), held_out=FINANCE_HELD_OUT, seed=SEED)
    found = list(starter_data.asked_examples(train, count=count, unanswerable=SECOND_UNANSWERABLE, seed=SEED))
    made = starter_data.made(data, count=count, limit=SECOND_MADE, unanswerable=SECOND_UNANSWERABLE, seed=SEED + 10)
    return random.Random(f"{SEED}/second").sample(found + made, k=len(found) + len(made))


def dialogue(example: GroundedExample) -> Example:
    """The example as the conversation that the assistant has."""
    return [*messages(example.question, example.passages), {"role": "assistant", "content": example.answer}]


def learn(
    lm: LanguageModel,
    train: Sequence[GroundedExample],
    *,
    run: Path,
    plan: tuple[Technique, ...],
    settings: TrainSettings,
) -> None:
    """One pass."""
    finetune(
        lm,
        [dialogue(example) for example in train],
        plan=plan,
        settings=settings,
        on_event=Progress(lambda reading: print(reading, flush=True)),
        run_folder=run,
    )


def main() -> None:
    """Trains and writes the adapter."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--run", type=Path, default=Path("starter-run"))
    chosen = parser.parse_args()
    lm = almanac.load(BASE)
    train, held_out = examples(lm, chosen.data)
    print(len(train), "examples", dict(Counter(example.kind for example in train)), len(held_out), "held out")
    learn(lm, train, run=chosen.run / "first", plan=(ADAPTER,), settings=SETTINGS)
    second = second_examples(lm, chosen.data)
    learn(lm, second, run=chosen.run / "second", plan=(), settings=SECOND_SETTINGS)
    starter.write(lm, chosen.output, technique=ADAPTER, details=DETAILS | {"examples": [len(train), len(second)]})


if __name__ == "__main__":
    main()
