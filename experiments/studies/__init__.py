"""Studies: questions about several techniques at once, each answered by one command with tables and pictures."""
