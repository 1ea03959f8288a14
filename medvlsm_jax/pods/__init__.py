"""Chips that are not there: what a run would take on a TPU slice."""
