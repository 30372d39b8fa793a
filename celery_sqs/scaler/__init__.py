"""Scaling: how many workers there should be (`policies`, pure), and the EC2 instances that are they (`fleet`).

`simulation` runs the very policies over made-up days; `faceapp.scaler` is the loop that runs them for real.
"""
