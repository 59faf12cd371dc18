"""Teachers, one or several, and agreement of networks with themselves."""
