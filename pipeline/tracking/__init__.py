"""The way to MLflow: the checked connection, and the making of its database."""
