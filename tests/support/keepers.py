"""The keeper of a studio's session, for tests."""


def keeper_of(studio):
    """Return the keeper that saves the changes of a studio."""
    return studio.on_change.__self__
