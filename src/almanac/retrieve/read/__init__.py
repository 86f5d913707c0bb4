"""Readers, one file per format; `folder` reads them all."""
