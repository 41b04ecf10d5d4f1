"""A registered version given out: as a bundle that can be verified without us, or as an adapter for PEFT alone."""
