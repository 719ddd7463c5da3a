"""What bundles hold, and how texts become ids: all that training and serving must agree on."""
