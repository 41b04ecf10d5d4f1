"""What git and DVC keep: the workspace, dataset versions, experiments and their outputs."""
