"""From a raw download to images, masks, annotations and splits in one layout."""
