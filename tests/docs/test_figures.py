"""The figures that pages name are those of the code: a changed constant makes its page stale, and this test say so."""

from __future__ import annotations

import pkgutil
import re

import pytest
from docs.pages import pages

from almanac.adapt.lora import Lora
from almanac.assistant.confidence import NAMES
from almanac.assistant.grounding import RELEVANT, SUPPORTED
from almanac.assistant.prompt import MAX_QUESTION_CHARACTERS
from almanac.assistant.settings import BuildSettings
from almanac.cli.examine import LEAST_DISK_BYTES, LEAST_MEMORY_BYTES, LEAST_PYTHON
from almanac.compress.quantize.blocks import LOSS_BOUNDS
from almanac.compress.quantize.int8 import Int8
from almanac.core.catalog import techniques
from almanac.data.dedup.near import NearDuplicates
from almanac.data.filters.boilerplate import BoilerplateRule
from almanac.data.grounded import REFUSAL
from almanac.data.pii import kinds
from almanac.files.gguf import reader
from almanac.files.gguf.formats import FORMATS
from almanac.files.safetensors.header import MAX_DIMS, MAX_HEADER_BYTES
from almanac.generate.engine import MAX_STOPS, MAX_TOP_LOGPROBS
from almanac.language_model.encoder import ALIASES
from almanac.models.family import families
from almanac.objectives.next_token import CHUNK_TARGETS
from almanac.retrieve.clean import PII_CHOICES, Policy
from almanac.retrieve.index.settings import IndexSettings
from almanac.retrieve.read import csv, pdf, process, zipped
from almanac.retrieve.read.folder import MAX_FILES
from almanac.retrieve.read.formats import formats
from almanac.serve import limits as serve_limits
from almanac.serve.app import GRACE_SECONDS
from almanac.serve.openai_options import ASSISTANT, MODEL
from almanac.serve.policies import POLICIES
from almanac.serve.settings import ServeSettings
from almanac.serve.tokens import TOKEN_BYTES
from almanac.tokenizers import definition
from almanac.tokenizers.chat_template import MAX_SOURCE_BYTES
from almanac.tokenizers.template_process import CPU_SECONDS, MEMORY_BYTES, OUTPUT_BYTES
from almanac.train.checkpoint import KEPT
from almanac.train.settings import TrainSettings
from almanac.train.spikes import Spikes
from almanac.verify.parity import EQUAL
from almanac.verify.probes import MAX_PROBE_TOKENS, TEXTS

PAGES = {name: " ".join(page.text.split()) for name, page in pages().items()}
WORDS = {
    2: "two",
    3: "three",
    4: "four",
    5: "five",
    6: "six",
    8: "eight",
    11: "eleven",
    12: "twelve",
    0.2: "fifth",
    0.5: "half",
}
BUILD, TRAIN, SPIKES = BuildSettings(), TrainSettings(), Spikes()
SERVE, SHARED, NEAR = ServeSettings(), BoilerplateRule(), NearDuplicates()
KINDS = [module.name for module in pkgutil.iter_modules(kinds.__path__)]
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
    ("guide/models.md", f"{len(list(families()))} families of decoders"),
    ("README.md", f"{len(list(families()))} families of decoders"),
    ("guide/answers.md", f"the best {WORDS[BUILD.shown]} passages"),
    ("guide/answers.md", f"at least {SUPPORTED:.0%} of its words".replace("%", " %")),
    ("guide/answers.md", f"at least {WORDS[RELEVANT]} of the words of the question"),
    ("guide/answers.md", f'"{REFUSAL}"'),
    ("guide/answers.md", f"weighs {WORDS[len(NAMES)]} signals"),
    ("guide/api.md", f"up to {serve_limits.MAX_CHOICES} choices"),
    ("guide/api.md", f"may hold {serve_limits.MAX_INPUTS} texts"),
    ("guide/api.md", f"the two models, `{ASSISTANT}` and `{MODEL}`"),
    ("guide/cleaning.md", f"at least {Policy().near_duplicate:.0%} of its sequences".replace("%", " %")),
    ("guide/cleaning.md", f"sequences of {WORDS[NEAR.shingle_words]} words"),
    (
        "guide/cleaning.md",
        f"{SHARED.min_documents} documents and at least {SHARED.min_share:.0%} of".replace("%", " %"),
    ),
    ("guide/cleaning.md", f"more than {WORDS[SHARED.max_removed]} of its text"),
    ("guide/cleaning.md", f"{WORDS[len(KINDS)].capitalize()} kinds of personal data"),
    *(("guide/cleaning.md", f"The policy `{choice}`") for choice in PII_CHOICES),
    ("guide/documents.md", f"may hold {MAX_FILES:,} documents"),
    ("guide/documents.md", f"may have {pdf.MAX_PAGES:,} pages"),
    ("guide/documents.md", f"may have {csv.MAX_COLUMNS:,} columns"),
    ("guide/documents.md", f"may hold {zipped.MAX_ENTRIES:,} entries and unfold to {zipped.MAX_RATIO} times"),
    ("guide/documents.md", f"{process.MEMORY_BYTES // MIB} MiB of memory and {process.SECONDS} seconds"),
    ("guide/retrieval.md", f"at most {BUILD.chunk_tokens} tokens"),
    ("guide/retrieval.md", f"repeats up to {BUILD.overlap_tokens} tokens"),
    ("guide/retrieval.md", f"the best {WORDS[BUILD.shown]} passages"),
    ("guide/retrieval.md", f"The best {IndexSettings().candidates} passages of each ranking"),
    ("guide/retrieval.md", f"The default encoder is `{BUILD.encoder}`"),
    ("guide/retrieval.md", f"reads up to {ALIASES[BUILD.encoder].max_tokens} tokens"),
    ("guide/serve.md", f"on port {SERVE.port}"),
    ("guide/serve.md", f"get {GRACE_SECONDS} seconds to end"),
    ("guide/serve.md", f"a new token of {8 * TOKEN_BYTES} bits"),
    (
        "guide/serve.md",
        f"have {SERVE.limits.body_bytes // MIB} MiB and an upload {SERVE.limits.upload_bytes // MIB} MiB",
    ),
    ("guide/serve.md", f"At most {SERVE.limits.rows} sequences are written together, and {SERVE.limits.queue} wait"),
    ("guide/serve.md", f"may have {SERVE.limits.concurrency} requests under way"),
    (
        "guide/serve.md",
        f"have {serve_limits.MAX_QUESTION_CHARACTERS:,} characters, of which the model reads {MAX_QUESTION_CHARACTERS:,}",
    ),
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
    ("guide/long_runs.md", f"After {WORDS[TRAIN.max_bad_steps]} such steps in a row"),
    ("guide/long_runs.md", f"After {WORDS[TRAIN.max_rollbacks]} such\nreturns it stops".replace("\n", " ")),
    ("guide/long_runs.md", f"by default {WORDS[round(SPIKES.deviations)]} standard deviations"),
    ("guide/long_runs.md", "after fifty good steps" if SPIKES.patience == 50 else "?"),
    ("guide/verify.md", f"cut to {MAX_PROBE_TOKENS} tokens"),
]


@pytest.mark.parametrize(("name", "phrase"), SAID)
def test_a_page_says_what_the_code_does(name: str, phrase: str) -> None:
    assert phrase in PAGES[name if name == "README.md" else f"docs/{name}"]


def test_the_table_of_documents_is_that_of_the_readers() -> None:
    rows = re.findall(
        r"^\| [^|]+ \| (`\.[^|]+) \| (\d+) MiB \|$", pages()["docs/guide/documents.md"].text, re.MULTILINE
    )
    told = {suffix: int(size) for suffixes, size in rows for suffix in re.findall(r"`(\.\w+)`", suffixes)}
    assert told == {suffix: kind.max_bytes // MIB for suffix, kind in formats().items()}


def test_the_table_of_endpoints_is_that_of_the_server() -> None:
    told = set(re.findall(r"^\| `([A-Z]+ /[^`]+)` \|", pages()["docs/guide/api.md"].text, re.MULTILINE))
    served = {route.replace(":path", "") for route in POLICIES if not route.startswith(("GET /ui", "GET /openapi"))}
    assert told == served - {"GET /", "GET /v1/models/{model}"}
