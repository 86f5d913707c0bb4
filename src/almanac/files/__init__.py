"""Foreign files, read strictly: safetensors, GGUF, JSON; and how our own files are written (`store`)."""
