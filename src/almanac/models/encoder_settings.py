"""How an encoder's vectors are pooled, and how long a text it takes: the files that sentence-transformers lays beside it.

``modules.json`` lists the steps after the network, ``1_Pooling/config.json`` says how tokens are pooled,
``sentence_bert_config.json`` (by default the tokenizer's own ``model_max_length``) how many tokens count. Two spellings
of each are in use, before and since version 5. A step or field that would change the vectors and is not known is refused.
Where there is no ``modules.json``, tokens are averaged, as that library does too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from almanac.core.errors import FileFormatError, UnsupportedError
from almanac.core.value import Value
from almanac.files.quoting import quoted
from almanac.files.store import safe_member
from almanac.files.strict_json import read_json
from almanac.nn.pooling import First, Max, Mean, Pooling

MODES: dict[str, Pooling] = {"mean": Mean(), "cls": First(), "max": Max()}
FLAGS = {
    "pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls", "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens", "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}  # fmt: skip
STEPS = ("Transformer", "Pooling", "Normalize")
LEAST_TOKENS = 3  # one token of the text between the two that frame it


@dataclass(frozen=True, kw_only=True)
class EncoderSettings(Value):
    """What the weights do not say; vectors are always brought to length 1."""

    max_tokens: int  # of a text, those that frame it included; the rest of it is left out
    pooling: Pooling = Mean()


def read_encoder_settings(folder: Path, *, context_length: int) -> EncoderSettings:
    """The settings of an encoder's folder.

    Raises:
        UnsupportedError: a step, a way of pooling or a treatment of the text that is not done here.
        FileFormatError: a file that does not say what it should.
    """
    pooling: Pooling = Mean()
    if (folder / "modules.json").is_file():
        pooling = _read_modules(folder)
    network = _object(folder, "sentence_bert_config.json")
    _refuse_set(network, "do_lower_case", "Texts put in lower case before they are encoded")
    if network.get("transformer_task", "feature-extraction") != "feature-extraction":
        raise UnsupportedError(
            f"An encoder for {quoted(network['transformer_task'])}", remedy="Use one made for feature extraction."
        )
    _refuse_set(
        _object(folder, "config_sentence_transformers.json"), "default_prompt_name", "A prompt before each text"
    )
    given = network.get("max_seq_length")
    if given is None:
        given = _object(folder, "tokenizer_config.json").get("model_max_length")
    if given is None:
        given = context_length
    if isinstance(given, bool) or not isinstance(given, int | float) or not given >= LEAST_TOKENS:
        raise FileFormatError(
            f"{folder}: a text of at most {quoted(given)} tokens", remedy="Fetch the model again; a file is damaged."
        )
    return EncoderSettings(max_tokens=int(min(given, context_length)), pooling=pooling)


def _read_modules(folder: Path) -> Pooling:
    """The pooling that modules.json names, all its steps being known ones."""
    listed = read_json(safe_member(folder, "modules.json"))
    if not isinstance(listed, list) or not all(_is_step(item) for item in listed):
        raise FileFormatError(f"{folder / 'modules.json'} lists no steps", remedy="Fetch the model again.")
    names = [item["type"].rpartition(".")[2] for item in listed]
    if tuple(names) not in (STEPS, STEPS[:2]):
        raise UnsupportedError(
            f"{folder.name} makes its vectors in the steps {quoted(', '.join(names))}",
            remedy=f"Use an encoder whose steps are {', '.join(STEPS)}.",
        )
    if listed[0]["path"]:
        raise UnsupportedError(
            f"{folder.name} keeps its network in {quoted(listed[0]['path'])}", remedy="Use one that keeps it on top."
        )
    config = _object(folder, f"{listed[1]['path']}/config.json")
    if not config:
        raise FileFormatError(
            f"{folder / 'modules.json'} names a pooling that is not there", remedy="Fetch the whole folder again."
        )
    return _pooling(config, folder)


def _is_step(item: Any) -> bool:
    return isinstance(item, Mapping) and isinstance(item.get("type"), str) and isinstance(item.get("path"), str)


def _pooling(config: Mapping[str, Any], folder: Path) -> Pooling:
    given = config.get("pooling_mode")
    modes = [mode for flag, mode in FLAGS.items() if config.get(flag)] if given is None else given
    modes = [modes] if isinstance(modes, str) else modes or ["mean"]
    if not isinstance(modes, list) or len(modes) != 1 or modes[0] not in MODES:
        raise UnsupportedError(
            f"{folder.name} pools by {quoted(modes)}", remedy=f"Known are {', '.join(MODES)}, one at a time."
        )
    return MODES[modes[0]]


def _refuse_set(config: Mapping[str, Any], field: str, what: str) -> None:
    if config.get(field):
        raise UnsupportedError(
            f"{what} ({field} is {quoted(config[field])})", remedy="Use an encoder that takes texts as they are."
        )


def _object(folder: Path, name: str) -> Mapping[str, Any]:
    """The JSON object in a file of the folder, empty where there is no such file."""
    path = safe_member(folder, name)
    if not path.is_file():
        return {}
    content = read_json(path)
    if not isinstance(content, dict):
        raise FileFormatError(f"{path} does not hold an object", remedy="Fetch the model again.")
    return content
