"""What a word on the command line names, as far as a spec goes: an alias, a folder, a GGUF file, a configuration, a spec.

Nothing is built and no dense weight is read. A folder of ours tells its own spec, any other its family's reading of
config.json; of a GGUF file the header alone counts, with the bytes that its tensors take.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from almanac.core.errors import ArchitectureError, FileFormatError, NotFoundError
from almanac.core.spec import Spec
from almanac.core.value import KIND
from almanac.files.hub import PACKAGES, alias_path
from almanac.files.quoting import quoted
from almanac.files.strict_json import read_json
from almanac.models.checkpoint import Packed, describing
from almanac.models.encoder_decoder_family import encoder_decoder_families
from almanac.models.family import Fields, encoder_families, families, family_for
from almanac.models.gguf_file import read_gguf_file

MANIFEST, CONFIG = "almanac.json", "config.json"
MOST_BYTES = 16 << 20


@dataclass(frozen=True)
class Named:
    """A spec and where it is from.

    ``model_type``: its family, None where there is none to be told; ``stored_bytes``: of its weights as they lie on disk,
    None where there are none; ``not_understood``: fields of a configuration that nothing reads.
    """

    name: str
    spec: Spec
    model_type: str | None = None
    stored_bytes: int | None = None
    not_understood: tuple[str, ...] = ()


def named(source: str, *, download: bool = True) -> Named:
    """What ``source`` names.

    Raises:
        NotFoundError: nothing of that name. FileFormatError: it describes no model. ArchitectureError: no family reads it.
    """
    path = Path(source).expanduser()
    if not path.exists():
        if source not in PACKAGES:
            raise NotFoundError(
                f"There is no model {quoted(source, limit=200)}",
                remedy=f"Give an alias ({', '.join(PACKAGES)}), a folder, a .gguf file, or the JSON of a config or spec.",
            )
        path = alias_path(source, download=download)
    if path.is_dir():
        return _of_folder(path, source)
    if path.suffix.lower() == ".json":
        return _of_json(path, source)
    if path.suffix.lower() == ".gguf":
        return _of_gguf(path, source)
    raise FileFormatError(
        f"{quoted(source, limit=200)} is neither JSON nor GGUF",
        remedy="Give a folder, a .gguf file, or the JSON of a configuration or spec.",
    )


def _of_folder(path: Path, source: str) -> Named:
    place = next((path / name for name in (MANIFEST, CONFIG) if (path / name).is_file()), None)
    if place is None:
        raise NotFoundError(
            f"{quoted(source, limit=200)} holds no model", remedy=f"It has neither {MANIFEST} nor {CONFIG}."
        )
    found = _of_json(place, source)
    sizes = [file.stat().st_size for file in path.glob("*.safetensors")]
    return Named(found.name, found.spec, found.model_type, sum(sizes) if sizes else None, found.not_understood)


def _of_json(path: Path, source: str) -> Named:
    data: Any = read_json(path, max_bytes=MOST_BYTES)
    if not isinstance(data, dict):
        raise FileFormatError(f"{path} does not hold an object", remedy="Give a configuration or a spec.")
    with describing(path):
        if KIND in data:
            return Named(source, Spec.from_dict(data))
        if isinstance(data.get("spec"), dict):
            return Named(source, Spec.from_dict(data["spec"]), data.get("family"))
        return _of_config(path, source, data)


def _of_config(path: Path, source: str, config: dict[str, Any]) -> Named:
    model_type = str(config.get("model_type"))
    readers = {
        family.model_type: family.read for family in (*encoder_families(), *encoder_decoder_families(), *families())
    }
    if model_type not in readers:
        if "model_type" not in config:
            raise FileFormatError(f"{path} names no model_type", remedy="Give a config.json of the hub, or a spec.")
        family_for(model_type)  # says what is known
        raise ArchitectureError(f"No family reads model_type {quoted(model_type)}", remedy="See `almanac list models`.")
    fields = Fields(config, str(path))
    spec: Spec = readers[model_type](fields)
    return Named(source, spec, model_type, None, tuple(fields.not_understood()))


def _of_gguf(path: Path, source: str) -> Named:
    checkpoint, _ = read_gguf_file(path)
    tensors = checkpoint.tensors.values()
    nbytes = sum(item.blocks.nbytes if isinstance(item, Packed) else item.nbytes for item in tensors)
    return Named(source, checkpoint.spec, checkpoint.family.model_type, nbytes, tuple(checkpoint.not_understood))
