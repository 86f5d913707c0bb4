"""A language model small enough for a documentation snippet, with a tokenizer and a chat template, and a few documents.

The model is random: what it writes means nothing, which is all that a snippet about mechanics needs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tokenizers
import toys
from tokenizers import decoders, models, pre_tokenizers, trainers

from almanac.language_model.model import LanguageModel
from almanac.models.family import family_for
from almanac.tokenizers.chat_template import ChatTemplate
from almanac.tokenizers.tokenizer import Tokenizer

CONTROLS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CONTEXT = 1024  # tokens; enough for a prompt with three passages

DOCUMENTS = {
    "pump.md": (
        "# The pump",
        "What is the pump for?",
        "The pump is a device that moves cooling water through the building. The pump stands in the cellar and runs by "
        "day and by night.",
        "Change the filter",
        "Change the filter of the pump every 500 hours by using the wrench from the red box. A dirty filter makes the "
        "motor hot.",
        "Stop the pump",
        "Stop the pump with the green lever before you open the cover. The red lever is the brake of the lift and stays "
        "as it is.",
        "What does the warranty cover?",
        "The warranty is a promise of two years that covers the motor and the seals. The warranty ends when another firm "
        "opens the pump.",
    ),
    "orders.md": (
        "# Purchase orders",
        "Who signs a purchase order?",
        "A purchase order is a letter that the head of the department signs. The signature of the treasurer is needed "
        "above 500 euros.",
        "Submit an order",
        "Submit an order by noon with the yellow form and two quotations. An order that comes later is read on the next "
        "working day.",
        "What is the limit of an order?",
        "The order limit is a sum of 2000 euros for one order in one month. A larger order needs a letter from the "
        "director.",
        "Share the budget",
        "Share the budget with the treasurer by sending the table on Friday. The table must name every open order and "
        "its sum.",
    ),
    "visits.md": (
        "# Visits",
        "Register a visitor",
        "Register a visitor at the gate by writing the name and the hour in the blue book. A visitor without a name in "
        "the book may not enter.",
        "What is a visitor badge?",
        "A visitor badge is a card that opens the doors of the first floor for one day. The badge is given back at the "
        "gate.",
        "Show the building",
        "Show the building to a visitor by using the stairs on the north side. The lift is kept free for the people who "
        "need it.",
        "Which rooms are closed?",
        "The paper archive is a room that only the librarian and the director enter. The archive is opened for others on "
        "the first Monday of a month.",
    ),
}
"""Made up for the snippets: name -> title, then headings and paragraphs in turn."""


def tokenizer() -> Tokenizer:
    """Every byte is a token; digits stand alone, as in the SmolLM family, whose GGUF name this layout has."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=list(CONTROLS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator([line for lines in DOCUMENTS.values() for line in lines], trainer)
    config = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|im_end|>"}
    return Tokenizer.from_json(backend.to_str(), config={**config, "chat_template": TEMPLATE})


def language_model(**changes: Any) -> LanguageModel:
    """A random Llama of two layers."""
    words = tokenizer()
    sizes = {
        "vocab_size": words.vocab_size,
        "num_hidden_layers": 2,
        "max_position_embeddings": CONTEXT,
        "attention_bias": False,
        **changes,
    }
    spec = toys.toy_of(family_for("llama"), **sizes)
    return LanguageModel(
        network=toys.model_of(spec),
        spec=spec,
        tokenizer=words,
        template=ChatTemplate.of(words),
        family="llama",
        provenance={"source": "toy"},
    )


def write_documents(folder: Path) -> Path:
    """The documents as Markdown files; returns ``folder``."""
    folder.mkdir()
    for name, (title, *rest) in DOCUMENTS.items():
        sections = [f"## {heading}\n\n{text}" for heading, text in zip(rest[::2], rest[1::2], strict=True)]
        (folder / name).write_text("\n\n".join([title, *sections]) + "\n", encoding="utf-8")
    return folder
