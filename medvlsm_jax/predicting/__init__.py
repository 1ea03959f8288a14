"""A model and what people hand to it: each image is encoded once, asked every sentence, and its masks are written."""
