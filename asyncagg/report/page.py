"""The HTML page: one document that contains its data, style and scripts.

The data is a block of JSON without ``<``, ``>``, ``&`` and non-ASCII characters, so no value can
end the block; the scripts insert values as text, never as markup. A Content-Security-Policy allows
only these scripts, by their hashes, and forbids all network access. The charts are drawn by uPlot,
the smallest library of its kind (50 kB); ``tox -e uplot`` updates its files.
"""

from __future__ import annotations

import base64
import hashlib
import json
from importlib import metadata, resources
from string import Template
from typing import Any

_STYLES = ("uplot/uPlot.min.css", "style.css")
_SCRIPTS = ("uplot/uPlot.iife.min.js", "format.js", "view.js", "tables.js", "charts.js", "app.js")
_ESCAPES = {ord(character): f"\\u{ord(character):04x}" for character in "<>&"}


def build_page(data: dict[str, Any]) -> bytes:
    """Return the page, in UTF-8, for what `asyncagg.report.Report.as_dict` returns."""
    style = "\n".join(_read(name) for name in _STYLES)
    scripts = [_read(name) for name in _SCRIPTS]
    text = Template(_read("template.html")).substitute(
        policy=_policy(style, scripts),
        version=metadata.version("asyncagg"),
        licence=_read("uplot/LICENSE"),
        style=style,
        data=_json(data),
        scripts="\n".join(f"<script>{script}</script>" for script in scripts),
    )
    return text.encode()


def _read(name: str) -> str:
    return resources.files("asyncagg.report").joinpath("page", name).read_text("utf-8")


def _policy(style: str, scripts: list[str]) -> str:
    allowed = " ".join(_hash(script) for script in scripts)
    return (
        f"default-src 'none'; script-src {allowed}; style-src {_hash(style)}; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )


def _hash(text: str) -> str:
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return f"'sha256-{digest}'"


def _json(data: dict[str, Any]) -> str:
    text = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.translate(_ESCAPES)
