"""What the lanes of a host gave, as data that other hosts check and merge."""
