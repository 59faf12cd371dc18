"""Parts of an image or a modality hidden."""
