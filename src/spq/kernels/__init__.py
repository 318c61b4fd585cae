"""Arithmetic on compressed weights."""
