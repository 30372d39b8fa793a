"""What a worker does for a task, what becomes of one that is given up, and forgetting somebody in the results."""
