"""The claims audit: statements common in survey texts, and what holds of them."""

from __future__ import annotations


def page() -> str:
    """The page as Markdown."""
    return "# Claims audit\n"
