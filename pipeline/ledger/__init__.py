"""The append-only history of stage changes, and the aliases that are projected from it."""
