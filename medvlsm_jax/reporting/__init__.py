"""Pages, tables and figures of evaluations."""
