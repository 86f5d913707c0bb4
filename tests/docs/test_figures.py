"""The figures that pages name are those of the code: a changed constant makes its page stale, and this test say so."""

from __future__ import annotations

import pytest
from docs.pages import pages

from almanac.adapt.lora import Lora
from almanac.assistant.grounding import RELEVANT, SUPPORTED
from almanac.assistant.prompt import MAX_QUESTION_CHARACTERS
from almanac.assistant.settings import BuildSettings
from almanac.cli.examine import LEAST_DISK_BYTES, LEAST_MEMORY_BYTES, LEAST_PYTHON
from almanac.compress.quantize.blocks import LOSS_BOUNDS
from almanac.compress.quantize.int8 import Int8
from almanac.core.catalog import techniques
from almanac.data.grounded import REFUSAL
from almanac.files.gguf import reader
from almanac.files.gguf.formats import FORMATS
from almanac.files.safetensors.header import MAX_DIMS, MAX_HEADER_BYTES
from almanac.generate.engine import MAX_STOPS, MAX_TOP_LOGPROBS
from almanac.models.family import families
from almanac.objectives.next_token import CHUNK_TARGETS
from almanac.retrieve.read.folder import MAX_BYTES, MAX_FILES, readers
from almanac.tokenizers import definition
from almanac.tokenizers.chat_template import MAX_SOURCE_BYTES
from almanac.tokenizers.template_process import CPU_SECONDS, MEMORY_BYTES, OUTPUT_BYTES
from almanac.train.checkpoint import KEPT
from almanac.train.settings import TrainSettings
from almanac.verify.parity import EQUAL
from almanac.verify.probes import MAX_PROBE_TOKENS, TEXTS

PAGES = {name: " ".join(page.text.split()) for name, page in pages().items()}
WORDS = {2: "two", 3: "three", 4: "four", 5: "five", 8: "eight", 0.2: "fifth", 0.5: "half"}
BUILD, TRAIN = BuildSettings(), TrainSettings()
MIB, KIB, GB = 1 << 20, 1 << 10, 10**9

SAID: list[tuple[str, str]] = [
    ("concepts/certificate.md", f"of {WORDS[len(TEXTS)]} probe texts"),
    ("concepts/certificate.md", f"at most {EQUAL:.4f} of the largest logit"),
    ("concepts/certificate.md", f"| int8 | mean KL divergence, nats per token | {Int8().loss_bound()} |"),
    *(
        ("concepts/certificate.md", f"| {name} blocks | mean KL divergence, nats per token | {LOSS_BOUNDS[name]} |")
        for name in ("Q8_0", "Q4_1")
    ),
    ("concepts/objective_and_batch.md", f"{CHUNK_TARGETS} targets at a time"),
    ("concepts/technique_and_plan.md", f"All {WORDS[len(techniques())]} techniques that exist today"),
    ("guide/adapt_lora.md", f"the default is {Lora().rank}"),
    ("guide/files.md", f"may have {MAX_HEADER_BYTES // 10**6} million bytes and a tensor {MAX_DIMS} dimensions"),
    (
        "guide/files.md",
        f"may have {reader.MAX_HEADER_BYTES // MIB} MiB and a tensor {WORDS[reader.MAX_DIMS]} dimensions",
    ),
    ("guide/first_assistant.md", f'"{REFUSAL}"'),
    ("guide/first_assistant.md", f"A {WORDS[BUILD.held_out]} of the documents is set aside"),
    ("guide/generate.md", f"up to {MAX_STOPS} stop strings"),
    ("guide/generate.md", f"from 0 to {MAX_TOP_LOGPROBS}"),
    ("guide/install.md", f"Python {LEAST_PYTHON[0]}.{LEAST_PYTHON[1]} or newer"),
    ("guide/install.md", f"about {LEAST_MEMORY_BYTES // GB} GB of free memory and about {LEAST_DISK_BYTES // GB} GB"),
    *(("guide/models.md", entry.name) for entry in FORMATS.values()),
    *(("guide/models.md", family.architecture.removesuffix("ForCausalLM")) for family in families()),
    ("guide/models.md", f"{WORDS[len(list(families()))].capitalize()} families of decoders"),
    ("guide/retrieval.md", f"may have {MAX_BYTES // MIB} MiB and a folder {MAX_FILES:,} files"),
    ("guide/retrieval.md", f"at most {BUILD.chunk_tokens} tokens"),
    ("guide/retrieval.md", f"repeats up to {BUILD.overlap_tokens} tokens"),
    ("guide/retrieval.md", f"the best {WORDS[BUILD.shown]} passages"),
    ("guide/retrieval.md", f"at least {SUPPORTED:.0%} of its words".replace("%", " %")),
    ("guide/retrieval.md", f"at least {WORDS[RELEVANT]} of the words of the question"),
    ("guide/retrieval.md", f'"{REFUSAL}"'),
    ("guide/safety.md", f"cut after {MAX_QUESTION_CHARACTERS:,} characters"),
    ("guide/safety.md", f"keeps {WORDS[KEPT]} good checkpoints"),
    ("guide/tokenizers.md", f"may use {CPU_SECONDS:g} second, {MEMORY_BYTES // MIB} MiB of memory"),
    ("guide/tokenizers.md", f"{OUTPUT_BYTES // MIB} MiB of output"),
    ("guide/tokenizers.md", f"may have {MAX_SOURCE_BYTES // KIB} KiB"),
    ("guide/tokenizers.md", f"larger than {definition.MAX_BYTES // MIB} MiB"),
    ("guide/training.md", f"default learning rate is `{TRAIN.learning_rate:.0e}`".replace("e-0", "e-")),
    ("guide/training.md", f"over {TRAIN.warmup * 100:.0f} % of the steps"),
    ("guide/training.md", f"A step takes {TRAIN.step_tokens:,} tokens"),
    ("guide/training.md", f"is seen {WORDS[TRAIN.epochs]} times"),
    ("guide/training.md", f"After {WORDS[TRAIN.max_bad_steps]} skipped steps"),
    ("guide/verify.md", f"cut to {MAX_PROBE_TOKENS} tokens"),
]


@pytest.mark.parametrize(("name", "phrase"), SAID)
def test_a_page_says_what_the_code_does(name: str, phrase: str) -> None:
    assert phrase in PAGES[f"docs/{name}"]


def test_the_documents_that_are_read_are_those_that_the_pages_name() -> None:
    named = {"md": "Markdown", "html": "HTML", "txt": "plain text", "rst": "reStructuredText"}
    kinds = {"markdown": "md", "mkd": "md", "htm": "html", "xhtml": "html", "text": "txt"}
    known = {kinds.get(suffix.lstrip("."), suffix.lstrip(".")) for suffix in readers()}
    assert known == set(named)
    assert all(name in PAGES["docs/guide/retrieval.md"] for name in named.values())
