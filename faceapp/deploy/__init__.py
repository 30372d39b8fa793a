"""The commands `faceapp deploy ...`: the stack on an AWS account, or on the embedded AWS by `--endpoint-url`."""
