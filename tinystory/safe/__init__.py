"""Files and texts of strangers, read with care; whole files out."""
