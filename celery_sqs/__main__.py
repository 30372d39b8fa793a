"""`python -m celery_sqs COMMAND -A APP`."""

from celery_sqs.commands import main

if __name__ == "__main__":
    main(prog_name="python -m celery_sqs")
