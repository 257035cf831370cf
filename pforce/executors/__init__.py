"""Where tasks run: the only package that imports ray."""
