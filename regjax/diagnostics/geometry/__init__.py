"""Where the features of classes lie."""
