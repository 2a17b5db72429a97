"""Wrappers: each is a stash that stands on a stash."""
