"""TeX to MathML when the site is built: browsers draw it themselves, without a script or a font to fetch."""

from __future__ import annotations

import re
from html import unescape
from typing import Any

from latex2mathml.converter import convert

TEX = re.compile(
    r'<(?P<tag>span|div) class="arithmatex">\\(?P<kind>[(\[])(?P<tex>.*?)\\[)\]]</(?P=tag)>', re.DOTALL
)


def mathml(match: re.Match[str]) -> str:
    """One formula; a word in roman letters stays one word."""
    tex = re.sub(r"\\mathrm\b", r"\\text", unescape(match["tex"])).strip()
    if match["kind"] == "(":
        return convert(tex)
    return f'<div class="formula" tabindex="0">{convert(tex, display="block")}</div>'


def on_page_content(html: str, **_: Any) -> str:
    """Every formula of a page."""
    return TEX.sub(mathml, html)
