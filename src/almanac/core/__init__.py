"""The open core: spec, site, technique, state, batch, catalog, errors. Imports torch and the standard library only."""
