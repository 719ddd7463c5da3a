"""What operators see of an engine. Holds no text of users."""
