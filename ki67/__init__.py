"""Ki-67 index of whole slides: typed functions of arrays and tables that the workflow's scripts call."""

__version__ = "0.1.0"
