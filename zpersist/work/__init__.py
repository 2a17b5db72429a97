"""Works: what a method returns, kept on the instance, on the class, and in a file or a stash."""
