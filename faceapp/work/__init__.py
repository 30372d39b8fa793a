"""What a worker does for a task, and what becomes of one that is given up."""
