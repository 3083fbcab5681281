"""From checkpoints to decisions: the inspector, its exported file, the report, and running it over images."""
