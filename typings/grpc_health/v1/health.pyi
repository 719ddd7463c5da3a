"""Types of what this project uses of grpcio-health-checking 1.76, which ships none."""

SERVICE_NAME: str
