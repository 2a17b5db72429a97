"""Stores: each is a stash that stands on something real."""
