"""Compare many decoders with real stories, and write the result as a page. Knows no terminal."""
