"""The frozen base model: found, verified by content, loaded without running its code."""
