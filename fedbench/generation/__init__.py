"""Asking models: one protocol, one file per backend, and the store that keeps every answer."""
