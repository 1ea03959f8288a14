"""Models and train states on disk."""
