"""Stage."""

__all__: list[str] = []
