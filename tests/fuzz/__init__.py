"""Damaged and hostile files: how they are made, and what must happen to them."""
