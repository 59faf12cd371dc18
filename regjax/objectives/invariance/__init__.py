"""What should not change between domains or under symmetries."""
