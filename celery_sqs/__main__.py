"""`python -m celery_sqs`: what Celery's own command line has not."""

from __future__ import annotations

from celery_sqs.commands import main

if __name__ == "__main__":
    main(prog_name="python -m celery_sqs")
