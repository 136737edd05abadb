"""Ways out of the program: one file format a module."""
