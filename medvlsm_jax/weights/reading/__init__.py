"""Bytes of checkpoint files to arrays, without PyTorch: nothing that a file names is imported, and nothing runs."""
