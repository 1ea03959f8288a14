"""An image file to its picture: upright, one page, every value as the file has it."""
