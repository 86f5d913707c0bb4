"""safetensors: a JSON header that is data and nothing else, then the tensors' bytes; read and written by ourselves."""

from almanac.files.safetensors.header import DTYPES, Header, TensorEntry, read_header
from almanac.files.safetensors.reading import SafetensorsFile, open_safetensors
from almanac.files.safetensors.sharded import ShardedSafetensors, read_sharded
from almanac.files.safetensors.writing import write_safetensors

__all__ = [
    "DTYPES",
    "Header",
    "SafetensorsFile",
    "ShardedSafetensors",
    "TensorEntry",
    "open_safetensors",
    "read_header",
    "read_sharded",
    "write_safetensors",
]
