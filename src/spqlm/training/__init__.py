"""Training of compressed weights: one layer at a time, and the whole model end to end."""
