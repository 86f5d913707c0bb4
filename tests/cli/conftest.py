"""Toy models on disk with a tokenizer and a chat template of their own, and a runner for command lines."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import tokenizers
import torch
from tokenizers import decoders, models, pre_tokenizers, trainers
from toys import model_of, toy_of

from almanac.cli.main import run
from almanac.language_model.model import LanguageModel
from almanac.models.llama import FAMILY
from almanac.tokenizers.chat_template import ChatTemplate
from almanac.tokenizers.tokenizer import Tokenizer

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CONTEXT = 4096
LONG = 300  # tokens that the toy answers without coming to an end


@dataclass(frozen=True)
class Result:
    """What a command line came to."""

    code: int
    out: str
    err: str


@pytest.fixture
def almanac(capsys: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """Runs a command line in this process."""

    def run_it(*words: str | Path) -> Result:
        capsys.readouterr()
        code = run([str(word) for word in words])
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err)

    return run_it


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    """A byte-level BPE of 400 tokens with ChatML's control tokens."""
    rng = random.Random(0)
    syllables = [rng.choice("bcdfglmnprstv") + rng.choice("aeiou") for _ in range(40)]
    lines = [" ".join("".join(rng.choices(syllables, k=rng.randint(1, 3))) for _ in range(9)) for _ in range(400)]
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(lines, trainer)
    return Tokenizer.from_json(backend.to_str(), config={"eos_token": "<|im_end|>", "chat_template": TEMPLATE})


def made(tokenizer: Tokenizer, *, seed: int, sharpness: float) -> LanguageModel:
    """A random toy Llama over ``tokenizer``; a sharp attention answers by what was said long before."""
    spec = toy_of(FAMILY, vocab_size=tokenizer.vocab_size, max_position_embeddings=CONTEXT)
    network = model_of(spec, seed=seed)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if ".mixer." in name:
                parameter *= sharpness
    return LanguageModel(
        network=network,
        spec=spec,
        tokenizer=tokenizer,
        template=ChatTemplate.of(tokenizer),
        family="llama",
    )


@pytest.fixture(scope="session")
def lm(tokenizer: Tokenizer) -> LanguageModel:
    """A toy whose greedy answer to a greeting does not end by itself for ``LONG`` tokens."""
    torch.set_num_threads(1)
    for seed in range(50):
        lm = made(tokenizer, seed=seed, sharpness=6)
        tokens = lm.chat_tokens([{"role": "user", "content": "Hello."}])
        handle = lm.engine().submit(lm.request(tokens, max_tokens=LONG))
        text = "".join(event.text for event in handle)
        if handle.finish == "length" and len("".join(text.split())) > LONG // 4:
            return lm
    raise AssertionError("every toy ends its answer early")


@pytest.fixture(scope="session")
def model(lm: LanguageModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the toy."""
    return lm.save(tmp_path_factory.mktemp("models") / "toy")


@pytest.fixture(scope="session")
def blunt_model(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a toy that bears quantization as real models do."""
    return made(tokenizer, seed=0, sharpness=1).save(tmp_path_factory.mktemp("models") / "blunt")
