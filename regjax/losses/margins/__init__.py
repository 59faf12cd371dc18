"""Classes on equal terms: priors, margins, metrics between labels, and other links than the softmax."""
