"""The matrix as a person reads it: on the terminal, as Markdown, and as one HTML page."""
