"""Training of GANs and classifiers."""
