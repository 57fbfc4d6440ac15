"""The former name of `plots`, until `losses` imports that."""

from plots import PLOTS as PICTURES

__all__ = ["PICTURES"]
