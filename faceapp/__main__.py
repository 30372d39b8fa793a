"""`python -m faceapp` is `faceapp`."""

from faceapp.cli import main

main()
