"""An elastic face recognition service: Flask, Celery on SQS, torch, EC2 workers from zero to N."""

__version__ = "0.1.0"
