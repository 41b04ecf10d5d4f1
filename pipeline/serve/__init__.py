"""A registered version at work: the model that MLflow loads."""
