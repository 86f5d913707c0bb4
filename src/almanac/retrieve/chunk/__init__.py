"""Cutting documents into the pieces that are indexed, shown and cited."""
