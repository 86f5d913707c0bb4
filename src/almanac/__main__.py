"""``python -m almanac``: the same as the command ``almanac``."""

from __future__ import annotations

from almanac.cli.main import main

if __name__ == "__main__":
    main()
