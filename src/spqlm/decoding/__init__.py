"""Decoding without transformers' overhead, inside transformers' own `generate`."""
