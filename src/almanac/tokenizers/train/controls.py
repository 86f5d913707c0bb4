"""The special tokens of a tokenizer that is trained here, and its chat template.

They are added beside the vocabulary, never inside it: no merge, no longest match and no segmentation can then come to the
id of one by spelling it, so text from users cannot forge it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from almanac.core.errors import RequestError

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""ChatML (OpenAI, 2023): a turn is its role, a line end, its text, and the token that ends it."""


@dataclass(frozen=True, kw_only=True)
class Controls:
    """Special tokens by role.

    Args:
        bos: beginning of a text or document.
        eos: end of an answer or document.
        pad: padding; kept apart from eos, or a model trained on padded rows unlearns to stop.
        extra: further control tokens.
        around: put bos before and eos after every text that is encoded, as BERT does with [CLS] and [SEP].
        chat_template: Jinja source that comes with the tokenizer.
    """

    bos: str | None = None
    eos: str | None = None
    pad: str | None = None
    extra: tuple[str, ...] = ()
    around: bool = False
    chat_template: str | None = None

    def __post_init__(self) -> None:
        if any(not text or text != text.strip() for text in self.texts()):
            raise RequestError(
                "A special token is empty, or begins or ends with white space", remedy="Name it otherwise."
            )
        if self.around and (self.bos is None or self.eos is None):
            raise RequestError("Texts are to stand between bos and eos, and one is missing", remedy="Name both.")

    def texts(self) -> tuple[str, ...]:
        """Every special token once, in the order of their ids."""
        named = [text for text in (self.bos, self.eos, self.pad, *self.extra) if text is not None]
        return tuple(dict.fromkeys(named))

    def roles(self) -> Iterator[tuple[str, str]]:
        """(role, text) as tokenizer_config.json names them."""
        for role, text in (("bos_token", self.bos), ("eos_token", self.eos), ("pad_token", self.pad)):
            if text is not None:
                yield role, text

    def post_processor(self, ids: dict[str, int]) -> dict[str, Any] | None:
        """The 'post_processor' of a tokenizer.json; ``ids`` by text."""
        if not self.around or self.bos is None or self.eos is None:
            return None

        def special(text: str, segment: int) -> dict[str, Any]:
            return {"SpecialToken": {"id": text, "type_id": segment}}

        def sequence(name: str, segment: int) -> dict[str, Any]:
            return {"Sequence": {"id": name, "type_id": segment}}

        single = [special(self.bos, 0), sequence("A", 0), special(self.eos, 0)]
        tokens = {text: {"id": text, "ids": [ids[text]], "tokens": [text]} for text in (self.bos, self.eos)}
        return {
            "type": "TemplateProcessing",
            "single": single,
            "pair": [*single, sequence("B", 1), special(self.eos, 1)],
            "special_tokens": tokens,
        }


PLAIN = Controls(bos="<|endoftext|>", eos="<|endoftext|>", pad="<|pad|>")
"""For a model of documents: one token separates them."""
CHAT = Controls(
    bos="<|endoftext|>", eos="<|im_end|>", pad="<|pad|>", extra=("<|im_start|>",), chat_template=CHATML
)  # fmt: skip
"""For a model that will talk: ChatML's tokens and template beside the separator of documents."""
ENCODER = Controls(bos="[CLS]", eos="[SEP]", pad="[PAD]", extra=("[MASK]",), around=True)
"""For an encoder as BERT is."""
