"""Almanac: the whole craft of language models in one workbench.

    import almanac

    lm = almanac.load("smollm2-135m-instruct")
    print(lm.chat([{"role": "user", "content": "What is LoRA?"}], max_tokens=64))

Names are imported when first used, so that ``import almanac`` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from almanac import adapt, compress
    from almanac.align.supervised import finetune
    from almanac.assistant.ask import ask, open_assistant
    from almanac.assistant.build import build
    from almanac.assistant.documents import add_document, list_documents, remove_document
    from almanac.curate.run import curate
    from almanac.generate.sampling import sampling
    from almanac.language_model.certify import verify_model
    from almanac.language_model.encoder import load_encoder
    from almanac.language_model.load import load
    from almanac.language_model.model import LanguageModel
    from almanac.pretrain.run import pretrain
    from almanac.serve.app import serve

_PLACES = {
    "LanguageModel": "almanac.language_model.model",
    "add_document": "almanac.assistant.documents",
    "ask": "almanac.assistant.ask",
    "build": "almanac.assistant.build",
    "curate": "almanac.curate.run",
    "finetune": "almanac.align.supervised",
    "list_documents": "almanac.assistant.documents",
    "load": "almanac.language_model.load",
    "load_encoder": "almanac.language_model.encoder",
    "open_assistant": "almanac.assistant.ask",
    "remove_document": "almanac.assistant.documents",
    "pretrain": "almanac.pretrain.run",
    "sampling": "almanac.generate.sampling",
    "serve": "almanac.serve.app",
    "verify_model": "almanac.language_model.certify",
}
_ROOMS = ("adapt", "compress")

__all__ = [
    "LanguageModel",
    "adapt",
    "add_document",
    "ask",
    "build",
    "compress",
    "curate",
    "finetune",
    "list_documents",
    "load",
    "load_encoder",
    "open_assistant",
    "pretrain",
    "remove_document",
    "sampling",
    "serve",
    "verify_model",
]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name in _PLACES:
        value = getattr(importlib.import_module(_PLACES[name]), name)
        globals()[name] = value  # the import has put a room of that name here: `pretrain`, `curate`
        return value
    if name in _ROOMS:
        return importlib.import_module(f"almanac.{name}")
    raise AttributeError(f"module 'almanac' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
