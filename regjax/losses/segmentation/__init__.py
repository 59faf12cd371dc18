"""Dense prediction and detection."""
