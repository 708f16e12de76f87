"""Who keeps the session of a studio, for tests."""


def keeper_of(studio):
    """Return the keeper that hears of a studio's changes."""
    return studio.on_change.__self__
