"""The CloudFormation stack, and what an instance of it finds out about itself."""
