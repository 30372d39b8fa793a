"""For tests of an application: an embedded AWS, a worker, and fixtures for pytest."""
