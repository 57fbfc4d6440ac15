"""What the theme leaves unsaid to those who hear a page."""

from __future__ import annotations

from typing import Any

SEARCH = '<div class="md-search" data-md-component="search" role="dialog"'


def on_post_page(output: str, **_: Any) -> str:
    """Name the search dialog."""
    return output.replace(SEARCH, SEARCH + ' aria-label="Search"')
