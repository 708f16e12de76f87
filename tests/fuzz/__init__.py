"""Seeded damage for the readers of files: each case is read, or is refused as a user would see it."""
