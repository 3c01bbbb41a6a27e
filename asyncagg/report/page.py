"""The page itself: one HTML document that carries its data, its style and its scripts.

The data are a block of JSON that holds none of ``<``, ``>``, ``&`` and nothing beyond ASCII, so
that no value can end the block; the scripts put values into the page as text, never as markup. The
page's own Content-Security-Policy lets nothing run but these scripts, by their hashes, and forbids
all network. The charts are drawn by uPlot, whose files lie beside ours (``tox -e uplot`` renews
them): of the libraries that can be carried along it is the smallest by far, at 50 kB.
"""

from __future__ import annotations

import base64
import hashlib
import json
from importlib import metadata, resources
from string import Template
from typing import Any

__all__ = ("build_page",)

_STYLES = ("uplot/uPlot.min.css", "style.css")
_SCRIPTS = (
    "uplot/uPlot.iife.min.js",
    "format.js",
    "tables.js",
    "charts.js",
    "app.js",
)
_ESCAPES = {ord(character): f"\\u{ord(character):04x}" for character in "<>&"}


def build_page(data: dict[str, Any]) -> bytes:
    """Return the page that shows these data, in UTF-8.

    Args:
        data: What `asyncagg.report.Report.as_dict` returns.
    """
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
