"""One value in one file: atomic, checked, mapped, locked.

This room knows nothing of stashes; it is the only one that writes files.
"""
