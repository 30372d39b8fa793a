"""Logs and tracing."""
