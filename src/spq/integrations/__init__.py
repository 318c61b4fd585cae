"""The only files that touch other libraries' internals."""
