"""Made-up days: the very policies that scale the fleet, over workloads, with the clock, SQS and EC2 simulated."""
