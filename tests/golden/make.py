"""Makes ``smollm2.json``: what the embedded model answers greedily, computed by transformers and not by us.

The weights are those of the pinned GGUF file, expanded to float32 by our reader (whose numbers the tests hold against
the ``gguf`` package bit for bit) and put into transformers' own Llama. Run from the root, with the oracles installed:

    python tests/golden/make.py

Every prompt must win each of its tokens by a clear margin, so that float32 rounding on another processor cannot turn an
answer; prompts that do not are refused here and must be replaced.
"""

from __future__ import annotations

import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from almanac.files.hub import PACKAGES, alias_path
from almanac.files.store import sha256_file, write_json
from almanac.language_model.load import load
from almanac.models.hub_folder import family_of, hub_names

ALIAS = "smollm2-135m-instruct"
PLACE = Path(__file__).with_name("smollm2.json")
NEW_TOKENS = 16
LEAST_MARGIN = 0.01  # logits between the best and the second token
COUNT = 32

TEXTS = (
    "The capital of France is",
    "Water boils at a temperature of",
    "Once upon a time there was a small",
    "The opposite of cold is",
    "def fibonacci(n):\n    ",
    "import numpy as np\n\nx = np.",
    "1, 2, 3, 4, 5,",
    "Monday, Tuesday, Wednesday,",
    "The recipe needs flour, sugar and",
    "To be, or not to be,",
    "In the year 1969, humans first",
    "The largest planet of the solar system is",
    "Dear Sir or Madam,\n\n",
    "A triangle has three",
    "She opened the door and saw",
    "The main cause of the French Revolution was",
    "Photosynthesis is the process by which",
    "SELECT name FROM users WHERE",
    "The train leaves at 8 o'clock and arrives at",
    "My favourite season is",
    "Ein Hund und eine Katze",
    "La vie est",
    "Q: What is 2 + 2?\nA:",
    "# Shopping list\n\n- Milk\n-",
    "The cat sat on the",
    "According to the law of gravity,",
    "An apple a day keeps",
    '{"name": "Ada", "age":',
    "The sun rises in the",
    "Roses are red,",
    "He played the piano while",
    "Thank you for your",
    "All human beings are born",
    "The doctor told the patient to",
)
CHATS = (
    "What is the capital of Japan?",
    "Name three primary colours.",
    "Write a sentence about the sea.",
    "How many legs does a spider have?",
    "Explain gravity in one sentence.",
    "Give me a synonym for happy.",
    "Who wrote Hamlet?",
    "Translate 'good morning' into French.",
)


def their_model(lm: Any) -> Any:
    """transformers' model with our dense weights."""
    import transformers

    family, config = family_of(lm.spec, lm.family) or sys.exit("no family")
    kind = transformers.CONFIG_MAPPING[family.model_type]
    model = transformers.AutoModelForCausalLM.from_config(kind(**config)).float().eval()
    weights = hub_names(family, lm.spec, {name: item.detach() for name, item in lm.network.named_parameters()})
    missing, surplus = model.load_state_dict(weights, strict=False)
    assert not surplus
    assert set(missing) <= {"lm_head.weight"}
    model.tie_weights()
    return model


def answer(model: Any, prompt: list[int]) -> tuple[list[int], float]:
    """Greedy tokens, each from a pass over everything before it without any cache, and the closest call."""
    row, margin = list(prompt), float("inf")
    for _ in range(NEW_TOKENS):
        logits: Tensor = model(torch.tensor([row]), use_cache=False).logits[0, -1]
        best = logits.topk(2)
        margin = min(margin, float(best.values[0] - best.values[1]))
        row.append(int(best.indices[0]))
    return row[len(prompt) :], margin


@torch.no_grad()
def main() -> None:
    """Writes the file, or says which prompts to replace."""
    path = alias_path(ALIAS, download=False)
    lm = load(path, packed=False)
    model = their_model(lm)
    prompts: list[tuple[str, str, list[int]]] = [("text", text, lm.tokenizer.encode(text)) for text in TEXTS]
    prompts += [("chat", text, lm.chat_tokens([{"role": "user", "content": text}])) for text in CHATS]
    rows = []
    for kind, text, ids in prompts:
        golden, margin = answer(model, ids)
        clear = margin >= LEAST_MARGIN
        print(f"{margin:8.4f} {'' if clear else 'too close'} {text!r} -> {lm.tokenizer.decode(golden)!r}")
        if clear:
            rows.append({"kind": kind, "text": text, "ids": ids, "golden": golden, "margin": round(margin, 4)})
    chats = [row for row in rows if row["kind"] == "chat"]
    rows = [row for row in rows if row["kind"] == "text"][: COUNT - len(chats)] + chats
    if len(rows) != COUNT:
        sys.exit(f"{len(rows)} prompts are clear enough, {COUNT} are needed")
    write_json(
        PLACE,
        {
            "derived": "greedy tokens of transformers' Llama in float32 over the same expanded weights, recomputed from "
            "the whole row for every token, without a cache; see make.py beside this file",
            "model": ALIAS, "package": f"{PACKAGES[ALIAS].name} {PACKAGES[ALIAS].version}", "sha256": sha256_file(path),
            "transformers": version("transformers"), "torch": version("torch"), "least_margin": LEAST_MARGIN,
            "rows": rows,
        },
    )  # fmt: skip
    print(json.dumps({"written": PLACE.name, "rows": len(rows)}))


if __name__ == "__main__":
    main()
