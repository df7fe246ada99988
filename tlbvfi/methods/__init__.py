"""One file per interpolation method, each an adapter behind the Method protocol."""
