"""The page of the selftest: one HTML file that a user attaches to a report."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from html import escape

from bit_paddle import __version__
from bit_paddle.system import environment
from bit_paddle.training.selftest.checks import FAILED, NOT_RUN, PASSED, Result
from bit_paddle.visual.page import document


def page(results: Sequence[Result], command: Sequence[str]) -> str:
    """Return the page of ``results``, with the machine and the ``command`` that measured them."""
    rows = "".join(
        f"<tr><td>{escape(one.name)}</td><td>{escape(one.about)}</td>"
        f"<td><b>{one.status}</b></td><td>{one.seconds:.1f}</td><td>{escape(one.text)}</td></tr>\n"
        for one in results
    )
    return document(
        f"Selftest: {summary(results)}",
        f"<p>bit_paddle {__version__}; {escape(environment.machine())}</p>\n"
        f"<pre>{escape(shlex.join(command))}</pre>\n"
        "<style>td, th { text-align: left; vertical-align: top; }</style>\n"
        '<div class="wide"><table>\n'
        "<tr><th>check</th><th>shows</th><th>result</th><th>seconds</th><th>measured</th></tr>\n"
        f"{rows}</table></div>\n",
    )


def summary(results: Sequence[Result]) -> str:
    """Return the numbers of checks per status, and the names of those that failed."""
    counts = {name: sum(one.status == name for one in results) for name in (PASSED, NOT_RUN)}
    failed = [one.name for one in results if one.status == FAILED]
    named = f" ({', '.join(failed)})" if failed else ""
    return f"{counts[PASSED]} passed, {len(failed)} failed{named}, {counts[NOT_RUN]} not run"
