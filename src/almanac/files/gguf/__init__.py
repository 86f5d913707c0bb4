"""GGUF, the model file of llama.cpp: reader, writer and block formats, in torch and without its library."""

from almanac.files.gguf.format import Format
from almanac.files.gguf.formats import FORMATS, format_named
from almanac.files.gguf.reader import GGUF, GGUFTensor, read_gguf
from almanac.files.gguf.writer import write_gguf

__all__ = ["FORMATS", "GGUF", "Format", "GGUFTensor", "format_named", "read_gguf", "write_gguf"]
