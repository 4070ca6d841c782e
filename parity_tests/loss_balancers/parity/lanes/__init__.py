"""Lanes: framework x device x mode. Each runs golden vectors and hands back bits."""
