"""From log tables to the anonymous tables that everything is trained on."""
