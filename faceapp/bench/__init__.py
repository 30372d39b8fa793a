"""Load for a running service: many photos at once, and books of what came back."""
