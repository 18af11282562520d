"""Checks: each is a small class, and its docstring states what it reports."""
