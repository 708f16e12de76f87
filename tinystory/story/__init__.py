"""The tree of stories: kept in a file, looked into token by token, written again."""
