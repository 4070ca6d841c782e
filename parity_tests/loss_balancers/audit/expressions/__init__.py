"""Expressions over words: how they are built, executed and compared. Knows neither a balancer nor a compiler."""
