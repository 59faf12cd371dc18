"""Labels that are partly wrong."""
