"""What is run beside the package: not part of the wheel."""
