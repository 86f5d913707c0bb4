"""What ``almanac build`` is asked to do, as one printable value."""

from __future__ import annotations

from dataclasses import dataclass

from almanac.core.value import Value


@dataclass(frozen=True, kw_only=True)
class BuildSettings(Value):
    """The dials of a build; everything that decides its result is here or in the documents."""

    model: str = "smollm2-135m-instruct"
    encoder: str = "all-minilm-l6-v2"  # finds passages by meaning; "" for by words alone
    starter: bool = True  # begin with the adapter that comes with Almanac, where there is one for the model
    policy: str = "keep"  # personal data in documents: keep, redact or drop
    chunk_tokens: int = 150  # longest passage
    overlap_tokens: int = 20
    shown: int = 3  # passages in front of a question
    held_out: float = 0.2  # share of documents kept for measuring
    per_passage: int = 2  # training questions made from a passage, at most
    unanswerable: float = 0.25  # share of measured questions that the shown passages do not answer
    declining: float = 0.08  # the same of training questions; more makes the model shy of questions it could answer
    rank: int = 16  # of the LoRA update; with a starter, the starter's
    learning_rate: float = 5e-4
    steps: int = 24
    step_tokens: int = 1024
    micro_tokens: int = 704  # of one forward pass, and the longest example: what memory must hold
    questions: int = 20  # held-out questions measured before and after
    answer_tokens: int = 80
    compression: str = "int8"  # or "keep": the base as it was packed, with the adapter beside it
    gguf: str = ""  # a quantization to export beside the model, such as "q8_0"; "" for none
    seed: int = 0
