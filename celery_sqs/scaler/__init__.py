"""Scaling: how many workers there should be (`policies`, pure), and the EC2 instances that are they (`fleet`).

`simulation` runs the very policies over made-up days; `loop` runs them for real.
"""
