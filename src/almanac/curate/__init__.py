"""From raw sources to a corpus worth training on, with a record of what was left out: `run`, `recipe`, `sources`."""
