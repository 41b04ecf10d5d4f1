"""Raw files to prepared rows: read, validate, split, tokenise, and the card that describes them."""
