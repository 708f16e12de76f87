"""Code that several commands share, one subject in each module. It knows no command."""
