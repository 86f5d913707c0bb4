"""``almanac tokenizer``: train a tokenizer on text, and look one over before a model is trained with it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from almanac.cli.options import Json
from almanac.cli.printing import emit, line, note, size, table
from almanac.core.errors import RequestError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from almanac.tokenizers.health import Health, LanguageOf, Use
    from almanac.tokenizers.train import Controls, Corpus, Kind, Trained

Flag = Annotated[bool, Parameter(show_default=False)]
SHOWN = 12  # tokens of a list on a terminal; --json has all
LANGUAGE_CHARACTERS = 1_000  # of a piece of text; enough to tell its language, which takes milliseconds


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Training:
    """How a tokenizer is trained; `report` needs none of it.

    Args:
        kind: The algorithm: byte_bpe, wordpiece, unigram, word or character.
        vocab_size: Tokens in all, special ones included.
        control: Special tokens: `plain` separates documents, `chat` adds ChatML's and its template, `encoder` has
            [CLS], [SEP], [PAD] and [MASK].
        token: A further special token; may be given several times.
    """

    kind: str = "byte_bpe"
    vocab_size: int = 8_000
    control: Literal["plain", "chat", "encoder"] = "plain"
    token: Annotated[tuple[str, ...], Parameter(show_default=False)] = ()

    def algorithm(self) -> Kind:
        """The algorithm. Raises NotFoundError for a name that there is not."""
        from almanac.tokenizers.train import kind_named

        return kind_named(self.kind)(vocab_size=self.vocab_size)

    def controls(self) -> Controls:
        """The special tokens."""
        import dataclasses

        from almanac.tokenizers.train import CHAT, ENCODER, PLAIN

        chosen = {"plain": PLAIN, "chat": CHAT, "encoder": ENCODER}[self.control]
        return dataclasses.replace(chosen, extra=(*chosen.extra, *self.token))


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Model:
    """The model that the vocabulary is weighed against.

    Args:
        hidden: Width of its embeddings.
        layers: How many it has.
        untied: Embedding and head are two matrices.
    """

    hidden: int = 768
    layers: int = 12
    untied: Flag = False


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Reading:
    """How the text is read.

    Args:
        field: The field of a .jsonl record that holds the text.
        replace_malformed: Read bytes that are not UTF-8 as a mark instead of refusing the file; they are counted.
    """

    field: str = "text"
    replace_malformed: Flag = False


DEFAULT_TRAINING, DEFAULT_MODEL, DEFAULT_READING = Training(), Model(), Reading()


def tokenizer(
    action: Literal["train", "report"],
    folder: Path,
    /,
    *texts: Path,
    training: Training = DEFAULT_TRAINING,
    model: Model = DEFAULT_MODEL,
    reading: Reading = DEFAULT_READING,
    json: Json = False,
) -> int:
    """Train a tokenizer, or report what one will cost a model.

    Training streams the texts (.txt, .md, .jsonl, also .gz, and folders of them), tells what the tokenizer loses on text it
    has not seen, tries whether other programs read it to the same ids, and writes tokenizer.json and
    tokenizer_config.json. The report shows, for a text: bytes per token, tokens per word by language, the share of a
    model's parameters that the vocabulary takes, tokens that no text leads to or that the text hardly shows, duplicates,
    and special tokens that users could forge.

    ```
    almanac tokenizer train my-tokenizer books/ --vocab-size 16000 --control chat
    almanac tokenizer report my-tokenizer books/ --hidden 512 --layers 8
    almanac tokenizer report my-model corpus.jsonl.gz --json
    ```

    Args:
        action: What to do.
        folder: Where the tokenizer is written to, or read from: a folder, or a tokenizer.json.
        texts: Files or folders of text.
    """
    if not texts:
        raise RequestError(
            f"tokenizer {action} without texts", remedy="Name files or folders of text after the folder."
        )
    from almanac.tokenizers.train import Corpus

    corpus = Corpus.of_files(texts, field=reading.field, replace_malformed=reading.replace_malformed)
    if action == "train":
        return _train(corpus, folder, training, json)
    return _report(corpus, folder, model, json)


def _train(corpus: Corpus, folder: Path, training: Training, json: bool) -> int:
    from almanac.tokenizers.train import train
    from almanac.tokenizers.train.exports import require_transformers, transformers_is_there

    trained = train(corpus, training.algorithm(), controls=training.controls())
    asked = transformers_is_there()
    if asked:
        require_transformers(trained.tokenizer, [])
    trained.save(folder)
    told = trained.to_dict() | {"folder": str(folder), "transformers": "same ids" if asked else "not installed"}
    if json:
        emit(told)
    else:
        _print_trained(trained, told)
    return 0


def _print_trained(trained: Trained, told: Mapping[str, Any]) -> None:
    lost = trained.losses
    text = "held-out text" if trained.held_out else "the training text (too little of it to hold any out)"
    rows = [
        ("tokenizer", f"{told['kind']}, {trained.tokenizer.vocab_size:,} tokens, in {told['folder']}"),
        ("trained on", size(trained.bytes)),
        ("given back exactly", f"{lost.exact_share:.1%} of {lost.texts:,} pieces of {text}"),
        ("unknown tokens", f"{lost.unknown_share:.2%}"),
        ("in GGUF", trained.gguf),
        ("in transformers", told["transformers"]),
    ]
    table(("figure", "value"), rows)
    for loss in trained.kind.stated_losses:
        note(f"loses by design: {loss}")
    for before, after in lost.examples:
        note(f"for instance: {before!r} comes back as {after!r}")
    if trained.replaced:
        note(f"{trained.replaced:,} malformed bytes were replaced")


def _report(corpus: Corpus, folder: Path, model: Model, json: bool) -> int:
    from almanac.tokenizers.health import Width, health
    from almanac.tokenizers.tokenizer import Tokenizer

    read = Tokenizer.from_json_file(folder)
    width = Width(hidden=model.hidden, layers=model.layers, tied=not model.untied)
    found = health(read, corpus.texts(), width=width, language_of=_language_of())
    if json:
        emit(found.to_dict())
    else:
        _print_health(found)
    return 0


def _language_of() -> LanguageOf:
    from almanac.data.filters.language import identify

    return lambda text: identify(text[:LANGUAGE_CHARACTERS], lingua=False).code


def _print_health(found: Health) -> None:
    from almanac.tokenizers.health import WITHOUT_SPACES

    def row(name: str, use: Use) -> tuple[str, ...]:
        words = "-" if name in WITHOUT_SPACES else f"{use.tokens_per_word:.2f}"
        unknown = f"{use.unknown / max(use.tokens, 1):.2%}"
        return (name, size(use.bytes), f"{use.bytes_per_token:.2f}", words, f"{use.tokens_per_character:.2f}", unknown)

    header = ("language", "text", "bytes per token", "tokens per word", "tokens per character", "unknown")
    table(header, [row("all", found.use), *(row(code, use) for code, use in found.languages.items())])
    line()
    width = found.width
    matrices = "one matrix" if width.tied else "two matrices"
    of = f"{matrices} of width {width.hidden:,} beside {width.layers:,} layers"
    rows = [
        ("vocabulary", f"{found.vocab_size:,} tokens", f"{found.vocabulary_share:.1%} of the parameters ({of})"),
        ("unreachable", len(found.reach.unreachable), _named(found, found.reach.unreachable)),
        ("undecided", len(found.reach.undecided), _named(found, found.reach.undecided)),
        ("never seen", len(found.never), _named(found, found.never)),
        ("rare", len(found.rare), _named(found, found.rare) or f"seen fewer than {found.rare_below} times"),
        ("duplicates", len(found.duplicates), _named(found, [group[0] for group in found.duplicates])),
        ("variants", found.variants, "differ from another only in case or the space before"),
        (
            "forgeable",
            len(found.forgeries),
            ", ".join(f"{item.token} ({item.how})" for item in found.forgeries[:SHOWN]),
        ),
    ]
    table(("tokens", "count", "which"), rows)


def _named(found: Health, ids: Iterable[int]) -> str:
    """The texts of some of the tokens, as Python would write them."""
    texts = [ascii(found.tokens[id])[1:-1] for id in ids]
    return " ".join(texts[:SHOWN]) + (" ..." if len(texts) > SHOWN else "")
