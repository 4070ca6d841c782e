"""Readers of what compilers emit: each makes expressions of a dump, or says what it finds there."""
