"""Filling a stash with many processes."""
