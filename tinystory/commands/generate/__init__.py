"""`tinystory generate`: one story, several, or a file of prompts."""
