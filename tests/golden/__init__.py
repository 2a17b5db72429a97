"""Data of each format version, as the zpersist that wrote it left it; never written again."""
