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
    from almanac.assistant.ask import ask
    from almanac.assistant.build import build
    from almanac.generate.sampling import sampling
    from almanac.language_model.certify import verify_model
    from almanac.language_model.load import load
    from almanac.language_model.model import LanguageModel

_PLACES = {
    "LanguageModel": "almanac.language_model.model",
    "ask": "almanac.assistant.ask",
    "build": "almanac.assistant.build",
    "finetune": "almanac.align.supervised",
    "load": "almanac.language_model.load",
    "sampling": "almanac.generate.sampling",
    "verify_model": "almanac.language_model.certify",
}
_ROOMS = ("adapt", "compress")

__all__ = ["LanguageModel", "adapt", "ask", "build", "compress", "finetune", "load", "sampling", "verify_model"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name in _PLACES:
        return getattr(importlib.import_module(_PLACES[name]), name)
    if name in _ROOMS:
        return importlib.import_module(f"almanac.{name}")
    raise AttributeError(f"module 'almanac' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
