"""Where texts come from, as streams of `document` and `Fault`: `plain`, `jsonl`, `parquet`, `warc`."""
