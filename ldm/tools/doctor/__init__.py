"""What this machine offers, and what that means for section `machine` of params.yaml."""
