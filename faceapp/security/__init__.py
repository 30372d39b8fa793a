"""API keys, and the credential of one start."""
