"""Drawn tissue: the painter of training fields and of whole H&E and Ki-67 slides with known truth."""

from __future__ import annotations

from ki67.phantom.draw import draw_slides
from ki67.phantom.pair import PhantomOptions

__all__ = ["PhantomOptions", "draw_slides"]
