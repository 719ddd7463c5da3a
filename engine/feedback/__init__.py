"""What comes back of answers: tokens, events, and the table that training reads."""
