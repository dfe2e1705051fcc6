"""Training of the small model: worlds to learn from, six stages, one command for all of them."""
