"""Records: what an annotation file, a card or a store says of images, masks and sentences."""
