"""A model over a set of records."""
