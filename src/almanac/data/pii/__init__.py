"""Personal data in text: `find`, `redact`, and one file for each kind of it under `kinds`."""
