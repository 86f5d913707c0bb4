"""Training tokenizers: one file an algorithm, and what they share."""

from almanac.tokenizers.train.controls import CHAT, ENCODER, PLAIN, Controls
from almanac.tokenizers.train.corpus import Corpus
from almanac.tokenizers.train.kind import Kind, kind_named, kinds
from almanac.tokenizers.train.run import Trained, train

__all__ = ["CHAT", "ENCODER", "PLAIN", "Controls", "Corpus", "Kind", "Trained", "kind_named", "kinds", "train"]
