"""Celery on SQS and SNS, with workers from zero to N."""
