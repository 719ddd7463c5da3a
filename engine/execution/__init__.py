"""What runs models and look-ups, in this process or on a server."""
