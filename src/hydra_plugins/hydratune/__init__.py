"""hydratune in the places where Hydra looks for plugins."""
