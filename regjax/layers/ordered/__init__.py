"""Units and ranks dropped from the end, so that what comes first matters most."""
