"""Pieces of text that several rooms write."""

from __future__ import annotations


def plural(count: int, noun: str) -> str:
    """Return ``count`` and the noun in its number: "1 image", "2 images", "2 micro-batches"."""
    if count == 1:
        return f"1 {noun}"
    ending = "es" if noun.endswith(("s", "x", "ch", "sh")) else "s"
    return f"{count:,} {noun}{ending}"
