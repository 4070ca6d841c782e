"""The targets, and the processes that compile for them."""
