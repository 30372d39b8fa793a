"""SQS queues beside the work queues: reading them, those of one process, and what killed ones left behind."""
