"""What is said of registered versions afterwards: whether they still are what they were, and what came of what."""
