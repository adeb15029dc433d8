"""Scores of images against images: extractors, statistics, the scores themselves, and the protocols that name them."""
