"""What people who write a stash test it with."""
