"""maxgan: MaxViT blocks as a universal vision module."""

__version__ = "0.1.0"
