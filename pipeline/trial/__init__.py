"""What a version is put to before it is promoted, where the rules of the stage ask for it."""
