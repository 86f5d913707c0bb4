"""What is asked of every form of a model: fixed texts, a fixed conversation, and the answers to compare."""

from __future__ import annotations

import datetime
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from almanac.core.errors import AlmanacError

TEXTS = (
    "The quick brown fox jumps over the lazy dog.",
    "In 2017 the paper had 8 authors, 15 pages and 1 idea.",
    "def add(a: int, b: int) -> int:\n    return a + b\n",
    "  Two spaces before, tabs\tbetween,\n\n\nand empty lines; end with a space ",
    "Grüße aus Köln: 3,50 € für naïve Crème brûlée.",
    "日本語の文章と한국어 문장, русский текст и العربية.",
    "Emoji 👩‍🔬🚀, math ∑√∞ and a combining e\u0301.",
    'https://example.org/a?b=c&d=%20 {"key": [1, 2.5e-3, null]}',
)
CONVERSATION = (
    {"role": "user", "content": "Name three colours."},
    {"role": "assistant", "content": "Red, green and blue."},
    {"role": "user", "content": "And one more?"},
)
MOMENT = datetime.datetime(2001, 2, 3, 4, 5, 6)  # for templates that write the date: a certificate must not expire
MAX_PROBE_TOKENS = 24
TOP = 16


class Form(Protocol):
    """What can be probed: a language model, however it is held."""

    spec: Any
    plan: Any
    network: Any
    tokenizer: Any
    template: Any


@dataclass(frozen=True)
class Divergence:
    """How far two forms of a model are apart on the probes.

    ``largest``: largest |difference| of two logits; ``scale``: largest |logit|; ``mean_kl``: KL(before || after), nats
    per token; ``agreement``: share of positions with the same most probable token.
    """

    largest: float
    scale: float
    mean_kl: float
    agreement: float

    @property
    def relative(self) -> float:
        """``largest`` as a share of ``scale``."""
        return self.largest / max(self.scale, 1e-30)

    def to_dict(self) -> dict[str, float]:
        return {
            "largest": self.largest,
            "scale": self.scale,
            "relative": self.relative,
            "mean_kl": self.mean_kl,
            "agreement": self.agreement,
        }


def probe_ids(form: Form) -> list[list[int]]:
    """The probe texts as the form's tokenizer reads them, special tokens included, cut to a fixed length."""
    rows = [form.tokenizer.encode(text)[:MAX_PROBE_TOKENS] for text in TEXTS]
    return [row[: form.network.context_length] for row in rows if row]


@torch.no_grad()
def probe_logits(form: Form, rows: Sequence[Sequence[int]]) -> list[Tensor]:
    """Logits float32 [tokens, vocab] of each row."""
    training = form.network.training
    form.network.eval()
    try:
        return [form.network(torch.tensor([list(row)]))[0].float() for row in rows]
    finally:
        form.network.train(training)


def divergence(before: Sequence[Tensor], after: Sequence[Tensor]) -> Divergence:
    """Compares logits of the same rows."""
    old, new = torch.cat(list(before)), torch.cat(list(after))
    old_log, new_log = old.log_softmax(-1), new.log_softmax(-1)
    kl = (old_log.exp() * (old_log - new_log)).sum(-1).mean()
    return Divergence(
        largest=float((old - new).abs().max()),
        scale=float(old.abs().max()),
        mean_kl=float(kl.clamp_min(0.0)),  # not max(0.0, ...), which would turn a NaN into no loss at all
        agreement=float((old.argmax(-1) == new.argmax(-1)).float().mean()),
    )


def tokenizer_answers(form: Form) -> list[dict[str, Any]]:
    """The ids of every probe text."""
    return [{"text": text, "ids": form.tokenizer.encode(text)} for text in TEXTS]


def template_answers(form: Form) -> dict[str, Any] | None:
    """The template's digest and what it makes of the probe conversation, or None without a template."""
    if form.template is None:
        return None
    try:
        text = form.template.render(list(CONVERSATION), add_generation_prompt=True, now=MOMENT)
    except AlmanacError as error:  # a template that refuses the conversation does so the same way in every form
        text = f"refused: {error.cause}"
    return {"digest": form.template.digest(), "rendered": hashlib.sha256(text.encode()).hexdigest()}


def network_answers(rows: Sequence[Sequence[int]], logits: Sequence[Tensor]) -> list[dict[str, Any]]:
    """What is kept of the logits: per probe the ids, the best token of each position, the best few of the last one."""
    out: list[dict[str, Any]] = []
    for row, values in zip(rows, logits, strict=True):
        top = values[-1].topk(min(TOP, values.shape[-1]))
        logprobs = values[:-1].log_softmax(-1)
        targets = torch.tensor(list(row[1:]), dtype=torch.int64)
        out.append(
            {
                "ids": list(row),
                "best": values.argmax(-1).tolist(),
                "top_ids": top.indices.tolist(),
                "top_logits": top.values.tolist(),
                "logprobs": logprobs.gather(-1, targets.unsqueeze(1)).flatten().tolist(),
            }
        )
    return out
