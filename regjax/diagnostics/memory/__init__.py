"""What a model keeps of its examples, and what it forgets."""
