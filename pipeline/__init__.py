"""prefixline: train, judge, register, promote and audit prefixes for frozen transformers models."""
