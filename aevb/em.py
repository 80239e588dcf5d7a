"""Exact EM."""
