"""``almanac export``: a model in a foreign format, read back and held against the model before it counts."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from almanac.cli.options import LOCAL, Json, Source
from almanac.cli.printing import emit, line, size
from almanac.core.errors import RequestError

STOPPED = "What may lie at the output was not checked; remove it, or run the same command again with --overwrite."
MARKS = ("config.json", "adapter_config.json")  # one of them is in every model folder


def export(
    model: str,
    output: Path,
    /,
    *,
    format: Literal["hf", "gguf", "peft"],
    quantization: str | None = None,
    overwrite: bool = False,
    source: Source = LOCAL,
    json: Json = False,
) -> int:
    """Write a model in a format that other programs read.

    `hf` is a dense folder for transformers and vLLM, adapters folded in; `gguf` one file for llama.cpp and its kin;
    `peft` the LoRA adapter alone. What was written as hf or gguf is read back and must answer as the model does, or nothing
    is left.

    ```
    almanac export my-model my-model-hf --format hf
    almanac export my-model my.gguf --format gguf --quantization Q4_K
    almanac export my-model my-adapter --format peft
    ```

    Args:
        model: An alias, a model folder, a `.gguf` file, or a hub id with `--revision`.
        output: The folder (hf, peft) or file (gguf) to write.
        format: The format.
        quantization: For gguf: `F16`, `Q8_0`, `Q4_K`, ...; by default packed weights stay packed, bit for bit.
        overwrite: Replace an earlier export at that place.
    """
    _require_free(output, format, overwrite=overwrite)
    lm = source.load(model)
    try:
        written = lm.export(output, format=format, quantization=quantization)
    except KeyboardInterrupt as stop:
        stop.add_note(STOPPED)
        raise
    nbytes = sum(file.stat().st_size for file in ([written] if written.is_file() else written.rglob("*")))
    if json:
        emit({"output": str(written), "format": format, "quantization": quantization, "bytes": nbytes})
    else:
        checked = "" if format == "peft" else ", read back and held against the model"
        line(f"{written}: {format}, {size(nbytes)}{checked}")
    return 0


def _require_free(output: Path, format: str, *, overwrite: bool) -> None:
    """Raises RequestError rather than let an export replace what is no earlier export."""
    if not output.exists():
        return
    replaceable = output.is_file() if format == "gguf" else output.is_dir() and _is_model(output)
    if not replaceable:
        raise RequestError(f"{output} is there and is no {format} export", remedy="Choose another place.")
    if not overwrite:
        raise RequestError(f"{output} is there already", remedy="Choose another place, or add --overwrite.")


def _is_model(folder: Path) -> bool:
    return not any(folder.iterdir()) or any((folder / name).is_file() for name in MARKS)
