"""Questions about registered versions: what came from what."""
