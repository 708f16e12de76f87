"""What shows a newcomer the way: the welcome, lines that stand ready at the prompt, the tour."""
