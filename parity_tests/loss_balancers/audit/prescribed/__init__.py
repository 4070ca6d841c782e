"""What is audited, and what the spec prescribes for it: the cases, and the reference computed with nodes."""
