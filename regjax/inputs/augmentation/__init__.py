"""Operations on each image."""
