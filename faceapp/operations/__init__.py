"""What a person does with a service that runs: send photos, look at it, see to what was given up."""
