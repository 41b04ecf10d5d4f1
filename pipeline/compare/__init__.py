"""`prefixline compare`: prefix tuning beside the other methods of the field, on the same data and the same budget."""
