"""Types of what this project uses of tritonclient 2.69, which ships none."""
