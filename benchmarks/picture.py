"""The former name of `figure`, until its callers import that."""

from .figure import draw

__all__ = ["draw"]
