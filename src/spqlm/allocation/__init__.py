"""What can be done to each weight, what it costs, and which of it a byte budget buys."""
