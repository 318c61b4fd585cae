"""Runtime layers of compressed models; each knows its own spec."""
