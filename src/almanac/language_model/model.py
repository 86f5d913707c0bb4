"""A language model with all that belongs to it: network, tokenizer, chat template, plan and provenance.

This is the value that ``almanac.load`` returns and that every verb takes and gives back.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from almanac.core.errors import RequestError, UnsupportedError
from almanac.core.site import Leaf
from almanac.core.technique import Attachment, Plan, Rewrite, Technique
from almanac.core.weight import StoredWeight
from almanac.generate.encoded_prompt import EncodedPrompt
from almanac.generate.engine import Engine, Event, Opening, Request
from almanac.generate.prefix_prompt import PrefixPrompt, reads_prefixes
from almanac.generate.sampling import Sampling
from almanac.nn.encoder_decoder import EncoderDecoder
from almanac.nn.stack import Decoder
from almanac.tokenizers.chat_encoding import encode_chat
from almanac.tokenizers.chat_template import ChatTemplate
from almanac.tokenizers.tokenizer import Tokenizer

Message = Mapping[str, Any]
DEFAULT_MAX_TOKENS = 256


@dataclass
class LanguageModel:
    """A loaded model.

    - ``network``: tokens int64 [batch, time] -> logits [batch, time, vocab]; of an encoder-decoder, which reads a prompt
      whole and answers with a text of its own, see `EncoderDecoder`
    - ``spec``, ``plan``: what the network is, and what was done to it since
    - ``template``: the chat template, or None for a base model
    - ``family``: the ``model_type`` it came from, or None
    - ``provenance``: where it came from and every step since, as JSON
    """

    network: Decoder | EncoderDecoder
    spec: Decoder.Spec | EncoderDecoder.Spec
    tokenizer: Tokenizer
    template: ChatTemplate | None = None
    plan: Plan = Plan()
    family: str | None = None
    provenance: dict[str, Any] = field(default_factory=dict)

    def generate(
        self,
        prompt: str | Sequence[int],
        *,
        max_tokens: int = DEFAULT_MAX_TOKENS,
        sampling: Sampling | None = None,
        stop: Sequence[str] = (),
    ) -> str:
        """The continuation of a text (control tokens in it are plain text) or of ids.

        Raises RequestError for an empty prompt, one over the context, or options out of range.
        """
        return "".join(event.text for event in self.stream(prompt, max_tokens=max_tokens, sampling=sampling, stop=stop))

    def stream(
        self,
        prompt: str | Sequence[int],
        *,
        max_tokens: int = DEFAULT_MAX_TOKENS,
        sampling: Sampling | None = None,
        stop: Sequence[str] = (),
    ) -> Iterator[Event]:
        """As :meth:`generate`, event by event."""
        tokens = self.tokenizer.encode(prompt, allow_special=False) if isinstance(prompt, str) else list(prompt)
        request = self.request(tokens, max_tokens=max_tokens, sampling=sampling, stop=stop)
        return iter(self.engine().submit(request))

    def chat(
        self,
        messages: Sequence[Message],
        *,
        max_tokens: int = DEFAULT_MAX_TOKENS,
        sampling: Sampling | None = None,
        stop: Sequence[str] = (),
    ) -> str:
        """The assistant's next message to a conversation of ``{"role", "content"}``."""
        return self.generate(self.chat_tokens(messages), max_tokens=max_tokens, sampling=sampling, stop=stop)

    def chat_tokens(self, messages: Sequence[Message]) -> list[int]:
        """The prompt ids of a conversation, ready for the assistant's turn.

        Control tokens come from the template alone: a message that spells one says it letter by letter.

        Raises UnsupportedError without a template, TemplateError or RequestError for messages it cannot render.
        """
        if self.template is None:
            raise UnsupportedError("This model has no chat template", remedy="Use generate, or an instruct model.")
        self._check_labels(messages)
        return encode_chat(self.tokenizer, self.template, messages, add_generation_prompt=True)

    def request(
        self,
        tokens: Sequence[int],
        *,
        max_tokens: int = DEFAULT_MAX_TOKENS,
        sampling: Sampling | None = None,
        stop: Sequence[str] = (),
        logprobs: int | None = None,
    ) -> Request:
        """A request of this model's kind: its end-of-turn tokens stop it, and it is fitted into the context."""
        read = (
            1 if isinstance(self.network, EncoderDecoder) else len(tokens)
        )  # tokens of the decoder before the new ones
        room = self.network.context_length - read
        return Request(
            tokens=tuple(tokens),
            max_tokens=max(1, min(max_tokens, room)) if max_tokens >= 1 else max_tokens,
            sampling=sampling or Sampling(),
            stop_tokens=self.tokenizer.special.stop,
            stop=tuple(stop),
            logprobs=logprobs,
        )

    def engine(self, *, max_rows: int = 16, prefill_chunk: int = 512) -> Engine:
        """A fresh engine over this network."""
        self.network.eval()
        return Engine(
            self.network,
            text_stream=lambda: KnownText(self.tokenizer),
            max_rows=max_rows,
            prefill_chunk=prefill_chunk,
            opening=self._opening(),
        )

    def _opening(self) -> Opening | None:
        if isinstance(self.network, EncoderDecoder):
            return EncodedPrompt(self.network)
        return PrefixPrompt(self.network) if reads_prefixes(self.spec) else None

    def attach(self, technique: Technique, calibration: Iterable[Tensor] | None = None) -> LanguageModel:
        """Applies a technique in place and adds it to the plan; returns this model."""
        if isinstance(technique, Attachment):
            technique.attach(self.network, calibration)
        elif isinstance(technique, Rewrite):
            spec, network = technique.rewrite(self.spec, self.network)
            assert isinstance(spec, Decoder.Spec) and isinstance(network, Decoder)
            self.spec, self.network = spec, network
        self.plan = self.plan.then(technique)
        self.record(technique.title, technique.to_dict())
        return self

    def detach(self, technique: Attachment) -> LanguageModel:
        """Undoes a technique of the plan in place; returns this model."""
        technique.detach(self.network)
        self.plan = self.plan.without(technique)
        self.record("detach", technique.to_dict())
        return self

    def fold(self) -> LanguageModel:
        """Moves every foldable technique into dense weights, in place; stored weights are expanded first.

        What the model computes stays the same; verified before returning (raises ParityError otherwise).
        """
        from almanac.verify.parity import folding

        with folding(self):
            self.expand()
            for technique in [step for step in self.plan.techniques if type(step).folds]:
                assert isinstance(technique, Attachment)
                technique.fold(self.network)
                self.plan = self.plan.without(technique)
                self.record("fold", technique.to_dict())
        return self

    def expand(self) -> LanguageModel:
        """Turns every stored weight into the dense float32 weight it stands for, in place; values do not change."""
        for module in self.network.modules():
            if isinstance(module, Leaf) and isinstance(module.weight, StoredWeight):
                module.set_weight(torch.nn.Parameter(module.weight.dense(), requires_grad=False))
        kept = tuple(step for step in self.plan.techniques if not type(step).stores)
        if kept != self.plan.techniques:
            self.plan = Plan(techniques=kept)
            self.record("expand", {})
        return self

    def quantize(self, technique: Technique, *, bound: float | None = None) -> LanguageModel:
        """Stores weights in another format, in place, and checks the loss against its bound.

        ``bound``: largest mean KL divergence from the model before, nats per token; None for the technique's own.
        Raises ParityError, with the model left as it was, when the loss is larger.
        """
        from almanac.verify.parity import quantizing

        with quantizing(self, technique, bound):
            self.attach(technique)
        return self

    def save(self, folder: str | Path) -> Path:
        """Writes a model folder with its certificate; see ``language_model.save``."""
        from almanac.language_model.save import save

        return save(self, Path(folder))

    def export(self, path: str | Path, *, format: str, quantization: str | None = None) -> Path:
        """Writes the model in a foreign format (``hf``, ``peft`` or ``gguf``); see ``language_model.export``."""
        from almanac.language_model.export import export

        return export(self, Path(path), format=format, quantization=quantization)

    def record(self, step: str, details: Mapping[str, Any]) -> None:
        """Adds a step to the provenance."""
        self.provenance.setdefault("steps", []).append({"step": step, "details": copy.deepcopy(dict(details))})

    @property
    def nbytes(self) -> int:
        """Bytes of all weights as held now."""
        return sum(parameter.nbytes for parameter in self.network.parameters())

    @property
    def num_parameters(self) -> int:
        """Weights of the model, counted as dense numbers, adapters included."""
        stored = [module for module in self.network.modules() if isinstance(module, StoredWeight)]
        inside = {id(parameter) for module in stored for parameter in module.parameters()}
        plain = sum(p.numel() for p in self.network.parameters() if id(p) not in inside)
        return plain + sum(module.shape.numel() for module in stored)

    def _check_labels(self, messages: Sequence[Message]) -> None:
        """Roles and types reach the template as they are (it compares them), so they must not spell a control token."""
        texts = list(self.tokenizer.control_tokens())
        for index, message in enumerate(messages):
            for label in _labels(message):
                if any(text in label for text in texts):
                    raise RequestError(
                        f"Message {index} has {label[:80]!r} for a role or type, which contains a control token",
                        remedy="Use a plain word, such as user.",
                    )


class KnownText:
    """The text of generated ids. An embedding may have more rows than the tokenizer has tokens (padding to a round
    number); a row beyond can be drawn all the same, stands for no text, and must not end the sequences beside it."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.stream = tokenizer.decode_stream()

    def feed(self, token: int) -> str:
        return self.stream.feed(token) if self.tokenizer.id_to_token(token) is not None else ""

    def finish(self) -> str:
        return self.stream.finish()


def _labels(value: Any, *, is_label: bool = False) -> Iterator[str]:
    """Every key, and every text under a role or a type, at any depth: what chat encoding leaves as it is."""
    if isinstance(value, str):
        yield from [value] if is_label else []
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _labels(key, is_label=True)
            yield from _labels(item, is_label=is_label or key in ("role", "type"))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _labels(item, is_label=is_label)
