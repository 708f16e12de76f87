"""A session file that an earlier tinystory wrote, with the model `mini`. It must go on loading and replaying."""

from pathlib import Path

KEPT = Path(__file__).resolve().parents[1] / "story" / "kept" / "branches-of-schema-1.json"
"""Fifteen turns of /retry, /more, /compare, /pick, /edit, /trim and /stop, before branches hung as they do now."""
