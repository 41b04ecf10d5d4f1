"""Retrainings in the words of the OpenLineage standard (https://openlineage.io), and where they are sent."""
