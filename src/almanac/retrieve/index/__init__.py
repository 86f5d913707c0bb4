"""The assistant's one document store: segments, manifests, exact vectors, and the store over them (`store`)."""
