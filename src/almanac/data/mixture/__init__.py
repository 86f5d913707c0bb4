"""How much of what a model sees, and in which order: `weights`, `doremi`, `curriculum`, `balance`, `sampler`."""
