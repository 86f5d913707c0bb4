"""Quality as a small language model sees it: documents that it finds too improbable go.

Marion et al. 2023, "When Less is More: Investigating Data Pruning for Pretraining LLMs at Scale" (arXiv 2309.04564) keep
documents by perplexity under a reference model, and find the middle better than the lowest: what is most probable is
repetition. Hence two bounds. A text is judged by its first tokens, which costs one forward pass.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import torch

from almanac.data.filters.step import Judge, Removed, Step
from almanac.data.sources.document import Document
from almanac.language_model.load import load
from almanac.language_model.model import LanguageModel

JUDGED = 20_000  # characters that are encoded at most


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelPerplexity(Step):
    """``model`` is what `almanac.load` takes; the perplexity of the first ``tokens`` must lie within the bounds."""

    model: str
    max_perplexity: float
    min_perplexity: float = 0.0
    tokens: int = 512

    def files(self) -> tuple[str, ...]:
        """The model, where it is a folder or a file."""
        return (self.model,) if Path(self.model).exists() else ()

    def prepare(self, folder: Path) -> Judge:
        """Loads the model. Raises as `almanac.load`."""
        lm = load(self.model)
        lm.network.eval()

        def judge(document: Document) -> Document | Removed:
            found = perplexity(lm, document.text, tokens=self.tokens)
            if not self.min_perplexity <= found <= self.max_perplexity:
                reason = "too improbable to the model" if found > self.max_perplexity else "too probable to the model"
                return Removed(reason, f"perplexity {found:,.1f}")
            return dataclasses.replace(document, metadata={**document.metadata, "model_perplexity": f"{found:.2f}"})

        return judge


def perplexity(lm: LanguageModel, text: str, *, tokens: int) -> float:
    """exp of the mean loss, nats, over the first tokens of ``text``; infinite where there are fewer than two."""
    ids = lm.tokenizer.encode(text[:JUDGED], add_special_tokens=False, allow_special=False)
    begin = [] if lm.tokenizer.special.bos is None else [lm.tokenizer.special.bos]
    row = [*begin, *ids][: min(tokens, lm.network.context_length)]
    if len(row) < 2:
        return math.inf
    tensor = torch.tensor([row])
    with torch.inference_mode():
        logits = lm.network(tensor[:, :-1])
        loss = torch.nn.functional.cross_entropy(logits[0].float(), tensor[0, 1:])
    return math.exp(min(700.0, float(loss)))
