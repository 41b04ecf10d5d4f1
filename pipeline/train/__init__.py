"""Training a prefix on prepared rows: batches, the loop, checkpoints."""
