"""Copies among texts: byte for byte up to white space (`exact`) and nearly so (`near`)."""
