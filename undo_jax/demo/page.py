"""The page of a demo: one HTML file, which loads nothing."""

import base64
import hashlib
import html
import json
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

SCRIPTS = ("uPlot.iife.min.js", "demo_parts.js", "demo_curves.js", "demo.js")
STYLES = ("uPlot.min.css", "demo.css")


def page(described: Mapping[str, Any]) -> str:
    """Returns the page of a description; its texts are in it as JSON, and shown as text.

    Its policy allows only its own scripts, and if live, only connections to its own server.
    """
    styles, scripts = map(_read, STYLES), [_read(name) for name in SCRIPTS]
    allowed = " ".join(f"'sha256-{_hash(script)}'" for script in scripts)
    connect = "'self'" if described["live"] else "'none'"
    policy = (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data:; "
        f"connect-src {connect}; base-uri 'none'; form-action 'none'"
    )
    filled = {
        "POLICY": policy,
        "TITLE": html.escape(described["name"]),
        "STYLE": "\n".join(styles),
        "DATA": inlined(described),
        "SCRIPTS": "\n".join(f"<script>{script}</script>" for script in scripts),
    }
    text = _read("demo.html")
    for name, content in filled.items():
        text = text.replace(f"<!--{name}-->", content, 1)
    return text


def inlined(content: Any) -> str:
    """Returns JSON that may be inside of a script element: it has no <."""
    text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _read(name: str) -> str:
    package = "undo_jax.demo" if name.startswith("demo") else "undo_jax.report"
    return (files(package) / "web" / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
