"""stepsearch."""
