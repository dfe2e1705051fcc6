"""Training of the small model: worlds to learn from, five stages, one command for all of them."""
