"""Weights of others: importers and exporters, each with one table of rename rules used in both directions."""

from unimask.conversion.run import convert

__all__ = ["convert"]
