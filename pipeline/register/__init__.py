"""What MLflow keeps: runs, registered versions, dataset sources, lineage records."""
