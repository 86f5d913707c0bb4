"""A prefix is read both ways in use as in training, in one call, beside sequences of other lengths."""

from __future__ import annotations

import torch

from almanac.core.state import Context
from almanac.core.technique import initialise
from almanac.generate.engine import Engine, Request, run_all
from almanac.generate.prefix_prompt import PrefixPrompt, reads_prefixes
from almanac.models.llama import FAMILY
from almanac.models.tiny import tiny_spec
from almanac.nn.attention.masks import PrefixLM
from almanac.nn.stack import Decoder

SPEC = tiny_spec(FAMILY, num_hidden_layers=2)
PREFIXED = SPEC.replace("layers.*.mixer", mask=PrefixLM())


def network() -> Decoder:
    made = initialise(PREFIXED.build(), seed=0).eval()
    for parameter in made.parameters():
        if parameter.dim() >= 2:
            parameter.data.mul_(8)  # so that what is seen matters
    assert isinstance(made, Decoder)
    return made


def greedy(made: Decoder, prompt: list[int], count: int) -> list[int]:
    """Without any state: all of the text anew for every token."""
    text = list(prompt)
    with torch.inference_mode():
        for _ in range(count):
            context = Context(torch.arange(len(text))[None], prefix=torch.tensor([len(prompt)]))
            hidden, _ = made.hidden(torch.tensor([text]), None, context)
            text.append(int(made.logits(hidden[:, -1]).argmax()))
    return text[len(prompt) :]


def test_what_is_written_is_what_training_would_score() -> None:
    made = network()
    prompts = [torch.randint(made.vocab_size, (size,), generator=torch.Generator().manual_seed(size)).tolist()
               for size in (3, 11, 7)]  # fmt: skip
    engine = Engine(made, prefill_chunk=4, opening=PrefixPrompt(made))  # chunks would cut the prefix
    found = run_all(engine, [Request(tokens=tuple(prompt), max_tokens=6) for prompt in prompts])
    assert found == [greedy(made, prompt, 6) for prompt in prompts]
    one_way = run_all(Engine(made), [Request(tokens=tuple(prompt), max_tokens=6) for prompt in prompts])
    assert one_way != found  # the mask is seen


def test_a_model_is_known_by_its_mask() -> None:
    assert reads_prefixes(PREFIXED) and not reads_prefixes(SPEC)
