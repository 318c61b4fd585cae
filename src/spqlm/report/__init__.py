"""Results for people: tables and the model card."""
