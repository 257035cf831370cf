"""Errors of input, files that are whole or not there, and the console: what everything else stands on."""
