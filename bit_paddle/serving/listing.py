"""The page `GET /docs`: the list of routes, as HTML that loads nothing from elsewhere."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

_STYLE = """
body { font-family: sans-serif; max-width: 60em; margin: 2em auto; padding: 0 1em; }
code { background: #eee; padding: 0 .2em; }
table { border-collapse: collapse; } td { padding: .2em 1em .2em 0; vertical-align: top; }
"""


def page(schema: Mapping[str, Any]) -> str:
    """Return the page for an OpenAPI ``schema``."""
    info = schema["info"]
    return "\n".join(
        (
            '<!doctype html><html lang="en"><meta charset="utf-8">',
            f"<title>{escape(info['title'])}</title><style>{_STYLE}</style>",
            f"<h1>{escape(info['title'])} {escape(info['version'])}</h1>",
            '<p>For programs: <a href="openapi.json">openapi.json</a></p>',
            *_routes(schema["paths"]),
        )
    )


def _routes(paths: Mapping[str, Any]) -> Iterator[str]:
    for path, methods in paths.items():
        for method, route in methods.items():
            yield f"<h2><code>{method.upper()} {escape(path)}</code></h2>"
            yield f"<p>{escape(route.get('description') or route.get('summary', ''))}</p>"
            kinds = route.get("requestBody", {}).get("content", {})
            if kinds:
                yield f"<p>Body: {', '.join(f'<code>{escape(kind)}</code>' for kind in kinds)}</p>"
            yield from _table(route.get("parameters", ()))


def _table(parameters: Any) -> Iterator[str]:
    if parameters:
        yield "<table>"
        for one in parameters:
            default = one["schema"].get("default")
            text = f"{one.get('description', '')} (default: {default})"
            yield f"<tr><td><code>{escape(one['name'])}</code><td>{escape(text)}"
        yield "</table>"
