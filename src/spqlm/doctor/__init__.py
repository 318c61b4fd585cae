"""What this machine and installation are, and what is slow on them without need."""
