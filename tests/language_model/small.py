"""Small whole language models: a toy network of a family, a tokenizer trained here, and a chat template of our own."""

from __future__ import annotations

import json
import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import tokenizers
import toys
from tokenizers import decoders, models, pre_tokenizers, trainers
from torch import nn

from almanac.core.technique import Technique
from almanac.language_model.model import LanguageModel
from almanac.models.family import Fields, family_for
from almanac.tokenizers.chat_template import ChatTemplate
from almanac.tokenizers.tokenizer import Tokenizer

VOCAB, CONTEXT = 384, 128
SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TEMPLATE = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\\nAnswer in one line.<|im_end|>\\n' }}{% endif %}"
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
TOKENIZER_CONFIG = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|im_end|>"}
TEXTS = (
    "A lamp hums in the quiet kitchen.",
    "  12 ships,\n\n3 cats\tand 4096 stars  ",
    "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich.",
    "漢字とかな, кириллица, ∑∂√ and 🐙🎈",
    "for i in range(10):\n    total += i * 2  # sum\n",
)
CONVERSATION = [
    {"role": "user", "content": "Which ship came first?"},
    {"role": "assistant", "content": "The one with 3 masts."},
    {"role": "user", "content": "And then?\n"},
]
CONFIG: dict[str, Any] = {
    "vocab_size": VOCAB, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": CONTEXT, "rms_norm_eps": 1e-5, "hidden_act": "silu",
    "rope_theta": 1000.0, "tie_word_embeddings": False, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2,
}  # fmt: skip
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 1000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama tied": ("llama", {"tie_word_embeddings": True}),
    "llama biases": ("llama", {"attention_bias": True, "mlp_bias": True, "head_dim": 32}),
    "llama3 scaling": ("llama", {"rope_parameters": LLAMA3}),
    "mistral": ("mistral", {"sliding_window": None}),
    "mistral window": ("mistral", {"sliding_window": 9}),
    "qwen2": ("qwen2", {"tie_word_embeddings": True}),
    "qwen2 windows": ("qwen2", {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1}),
    "smollm3": ("smollm3", {"no_rope_layer_interval": 3, "tie_word_embeddings": True}),
    "smollm3 windows": (
        "smollm3",
        {"no_rope_layer_interval": 2, "use_sliding_window": True, "sliding_window": 9, "attention_bias": True},
    ),
}


@cache
def tokenizer_json() -> str:
    """A byte-level BPE in the manner of SmolLM, trained on invented words; fewer ids than the embedding has rows."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB - 4,
        special_tokens=list(SPECIALS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    rng = random.Random(5)
    words = ["".join(rng.choice("klmnrst") + rng.choice("aeiou") for _ in range(rng.randint(1, 3))) for _ in range(80)]
    lines = (" ".join(rng.choices(words, k=9)) for _ in range(300))
    backend.train_from_iterator([*lines, *TEXTS], trainer)
    return backend.to_str()


def tokenizer(**config: Any) -> Tokenizer:
    """The small tokenizer with its template; ``config`` changes fields of its tokenizer_config.json."""
    merged = {**TOKENIZER_CONFIG, "chat_template": TEMPLATE, **config}
    return Tokenizer.from_json(tokenizer_json(), config=merged)


def config_of(variant: str, **changes: Any) -> dict[str, Any]:
    """The config.json of a variant."""
    model_type, own = VARIANTS[variant]
    return {"model_type": model_type, **CONFIG, **own, **changes}


def language_model(variant: str = "llama", *techniques: Technique, seed: int = 0, **changes: Any) -> LanguageModel:
    """A language model made without any file; parameters that a technique brings are random, as after training."""
    config = config_of(variant, **changes)
    family = family_for(config["model_type"])
    spec = family.read(Fields(config))
    words = tokenizer()
    lm = LanguageModel(
        network=toys.model_of(spec, seed=seed), spec=spec, tokenizer=words, template=ChatTemplate.of(words),
        family=family.model_type, provenance={"source": "toy"},
    )  # fmt: skip
    for index, technique in enumerate(techniques):
        before = {id(parameter) for parameter in lm.network.parameters()}
        lm.attach(technique)
        toys.stir((item for item in lm.network.parameters() if id(item) not in before), seed=seed + index + 2)
    return lm


def write_tokenizer(folder: Path, *, template: str | None = TEMPLATE, **config: Any) -> None:
    """tokenizer.json and tokenizer_config.json as a publisher would leave them."""
    (folder / "tokenizer.json").write_text(tokenizer_json())
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", **TOKENIZER_CONFIG, "chat_template": template, **config}
    (folder / "tokenizer_config.json").write_text(json.dumps({k: v for k, v in settings.items() if v is not None}))


@contextmanager
def quiet() -> Iterator[None]:
    """transformers and peft announce their own deprecations through warnings; those of other libraries stay errors."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"(transformers|peft)\..*")
        yield


def theirs(transformers: Any, variant: str, *, seed: int = 0, **changes: Any) -> Any:
    """The transformers model of a variant with random weights, norms and biases included."""
    config = config_of(variant, **changes)
    kind = transformers.CONFIG_MAPPING[config.pop("model_type")]
    if "rope_parameters" in config:
        config.pop("rope_theta")
    with quiet():
        model = transformers.AutoModelForCausalLM.from_config(kind(**config)).float().eval()
    randomise(model, seed=seed)
    return model


def randomise(model: nn.Module, *, seed: int) -> None:
    """Weights as wide as the toys', norms around one."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            centre = 1.0 if parameter.dim() == 1 else 0.0
            parameter.copy_(toys.STD * torch.randn(parameter.shape, generator=generator) + centre)


def hub_folder(transformers: Any, folder: Path, variant: str, **changes: Any) -> Any:
    """A folder that transformers wrote, tokenizer and template included; returns its model."""
    model = theirs(transformers, variant, **changes)
    words = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer.from_str(tokenizer_json()), **TOKENIZER_CONFIG
    )
    words.chat_template = TEMPLATE
    with quiet():
        model.save_pretrained(folder)
        words.save_pretrained(folder)
    return model


def files_in(folder: Path) -> dict[str, bytes]:
    """Every file below ``folder``, hidden ones included, by relative path."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
