"""The gate: criteria over scored rows to a verdict."""
