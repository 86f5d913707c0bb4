"""The starter adapter: SmolLM2-135M-Instruct learns to answer from numbered passages, to cite, and to decline.

    python recipes/starter_adapter.py --data ../shared/data --output src/almanac/assistant/starter_adapter

One LoRA of rank 16 on every linear map of the packed 4-bit base (QLoRA), one pass over about 1,400 examples
(``starter_data.py``), answer-only loss. About an hour on one core; killed and started again it goes on.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
from collections import Counter
from pathlib import Path

import starter_data

import almanac
from almanac.adapt.lora import Lora
from almanac.align.supervised import Example, finetune
from almanac.assistant import starter
from almanac.assistant.prompt import messages
from almanac.data.grounded import GroundedExample
from almanac.language_model.model import LanguageModel
from almanac.train.events.progress import Progress
from almanac.train.settings import TrainSettings

BASE = "smollm2-135m-instruct"
SEED = 0
HELD_OUT = 0.25  # of the people's texts: for choosing what the recipe does, never trained on
UNANSWERABLE = 0.25
MEDICAL, MADE = 200, 800
ADAPTER = Lora(rank=16, alpha=32.0, seed=SEED)
SETTINGS = TrainSettings(
    learning_rate=1e-3, epochs=1, step_tokens=2048, micro_tokens=900, warmup=0.05, save_every=10, seed=SEED
)

DETAILS = {
    "name": "grounded-answering-1",
    "recipe": "recipes/starter_adapter.py",
    "settings": SETTINGS.to_dict(),
    "data": {
        "AdversarialQA, through t0_multitask": "CC BY-SA 4.0",
        "Quoref, through t0_multitask": "CC BY 4.0",
        "MedQuAD": "CC BY 4.0",
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


def dialogue(example: GroundedExample) -> Example:
    """The example as the conversation that the assistant has."""
    return [*messages(example.question, example.passages), {"role": "assistant", "content": example.answer}]


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
    finetune(
        lm,
        [dialogue(example) for example in train],
        plan=(ADAPTER,),
        settings=SETTINGS,
        on_event=Progress(lambda reading: print(reading, flush=True)),
        run_folder=chosen.run,
    )
    starter.write(lm, chosen.output, technique=ADAPTER, details=DETAILS | {"examples": len(train)})


if __name__ == "__main__":
    main()
