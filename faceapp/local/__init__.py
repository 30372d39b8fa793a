"""The whole system on one machine: the embedded AWS, and the supervisor that starts every service."""
