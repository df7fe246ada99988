"""Video in and out: probe, decode, color, encode, chunk sessions, join, verify."""
